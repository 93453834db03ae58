//! A page that AsyncAPI's own renderer draws in a browser. The renderer comes from npm (`@asyncapi/react-component`), not
//! with this program: it is three megabytes of somebody else's JavaScript. It is written into the page, which so needs
//! no network.

use std::{fs, path::Path};

use anyhow::Context;
use serde_json::Value;

/// Where npm puts the renderer.
pub(super) const RENDERER: &str = "node_modules/@asyncapi/react-component";
/// Its program and its styles, in its folder.
const SCRIPT: &str = "browser/standalone/index.js";
const STYLES: &str = "styles/default.min.css";

/// The whole page.
///
/// # Errors
/// The renderer is not there.
pub(super) fn page(document: &Value, renderer: &Path) -> anyhow::Result<String> {
    let read = |file: &str| {
        let path = renderer.join(file);
        fs::read_to_string(&path).with_context(|| {
            format!(
                "cannot read {}; get AsyncAPI's renderer by `npm install @asyncapi/react-component`, and name its folder with --renderer",
                path.display()
            )
        })
    };
    let (script, styles) = (read(SCRIPT)?, read(STYLES)?);
    let title = document["info"]["title"].as_str().unwrap_or_default();
    // Inside a script element only `</script` and `<!--` have a meaning, and in JSON `<` occurs in strings alone.
    let json = document.to_string().replace('<', "\\u003c");
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>{}</title>\n<style>{}</style>\n</head>\n<body>\n\
         <div id=\"asyncapi\"></div>\n<script>{}</script>\n<script>\nAsyncApiStandalone.render({{schema: {json}, config: {{sidebar: \
         {{showOperations: 'byDefault'}}}}}}, document.getElementById('asyncapi'));\n</script>\n</body>\n</html>",
        escaped(title),
        styles.replace("</style", "<\\/style"),
        script.replace("</script", "<\\/script").replace("<!--", "<\\!--"),
    ))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_in_a_description_ends_its_script() {
        let folder = tempfile::tempdir().unwrap();
        for (file, text) in [(SCRIPT, "a='</script>'"), (STYLES, "b{}")] {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let page = page(&json!({"info": {"title": "</title>", "x": "</script><!--"}}), folder.path()).unwrap();
        assert_eq!((page.matches("</script>").count(), page.matches("<!--").count()), (2, 0), "{page}");
        assert_eq!(page.matches("</title>").count(), 1);
    }

    #[test]
    fn without_the_renderer_the_error_says_where_to_get_it() {
        let error = page(&json!({}), Path::new("/nowhere")).unwrap_err().to_string();
        assert!(error.contains("npm install @asyncapi/react-component"), "{error}");
    }
}

//! Finds the line of a field in YAML text, by indentation. Where a part is written in flow style (`{a: 1}`) or is not there, the line of
//! the closest part around it is the answer.

/// The line of `field` (such as `spec.routes[0].queue`), counted from 0. `None` without any part of it in the text.
pub(super) fn locate(lines: &[&str], field: &str) -> Option<usize> {
    let mut lines: Vec<String> = lines.iter().map(|&line| line.to_owned()).collect();
    let mut block = 0..lines.len();
    let mut found = None;
    for step in steps(field) {
        let next = match step {
            Step::Key(key) => find_key(&lines, block, key),
            Step::Item(index) => find_item(&mut lines, block, index),
        };
        let Some((line, child)) = next else { break };
        found = Some(line);
        block = child;
    }
    found
}

/// Whether a line says anything.
pub(super) fn has_content(line: &str) -> bool {
    let line = line.trim_start();
    !line.is_empty() && !line.starts_with('#') && !line.starts_with('%')
}

enum Step<'a> {
    Key(&'a str),
    Item(usize),
}

fn steps(field: &str) -> Vec<Step<'_>> {
    field
        .split(['.', '['])
        .filter(|part| !part.is_empty())
        .map(|part| part.strip_suffix(']').and_then(|index| index.parse().ok()).map_or(Step::Key(part), Step::Item))
        .collect()
}

type Block = std::ops::Range<usize>;

/// The line of a key and the block below it.
fn find_key(lines: &[String], block: Block, key: &str) -> Option<(usize, Block)> {
    let column = column(lines, block.clone())?;
    let line = block.clone().find(|&i| indent(&lines[i]) == Some(column) && is_key(&lines[i], key))?;
    // A list may stand at its key's own column.
    let end = (line + 1..block.end)
        .find(|&i| match indent(&lines[i]) {
            Some(next) => next < column || (next == column && !lines[i].trim_start().starts_with("- ")),
            None => false,
        })
        .unwrap_or(block.end);
    Some((line, line + 1..end))
}

/// The line of a list's item and the item's block, its dash replaced by a space so that its first key is in line with the others.
fn find_item(lines: &mut [String], block: Block, index: usize) -> Option<(usize, Block)> {
    let column = column(lines, block.clone())?;
    let starts = |i: &usize| {
        indent(&lines[*i]) == Some(column) && (lines[*i].trim_start().starts_with("- ") || lines[*i].trim() == "-")
    };
    let line = block.clone().filter(starts).nth(index)?;
    let end =
        (line + 1..block.end).find(|&i| indent(&lines[i]).is_some_and(|next| next <= column)).unwrap_or(block.end);
    lines[line].replace_range(column..=column, " ");
    Some((line, line..end))
}

/// The column at which a block's entries begin.
fn column(lines: &[String], block: Block) -> Option<usize> {
    block.into_iter().find_map(|i| indent(&lines[i]))
}

/// Spaces before the content; `None` for a line without any.
fn indent(line: &str) -> Option<usize> {
    has_content(line).then(|| line.len() - line.trim_start_matches(' ').len())
}

fn is_key(line: &str, key: &str) -> bool {
    let line = line.trim_start();
    let rest = [key.to_owned(), format!("\"{key}\""), format!("'{key}'")]
        .iter()
        .find_map(|form| line.strip_prefix(form.as_str()).map(str::to_owned));
    rest.is_some_and(|rest| {
        rest.trim_start().strip_prefix(':').is_some_and(|value| value.is_empty() || value.starts_with([' ', '\t']))
    })
}

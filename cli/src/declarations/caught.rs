//! Turns a panic of a library into an error. The scanner of libyaml-safer 0.3 panics at a tag before a comma
//! (`[!app, pos]`).

use std::{
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    sync::Once,
};

thread_local! {
    /// The caller reports a panic of this thread as an error.
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// What `work` returns. `None` if it panics; nothing is printed then.
pub(super) fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let former = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !CAUGHT.get() {
                former(info);
            }
        }));
    });
    let before = CAUGHT.replace(true);
    let done = panic::catch_unwind(AssertUnwindSafe(work)).ok();
    CAUGHT.set(before);
    done
}

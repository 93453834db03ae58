//! Counts what a piece of work allocates. The only unsafe code of the workspace: an allocator has no other form, and it is in no program.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static LIVE: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
    static SUM: Cell<usize> = const { Cell::new(0) };
}

fn more(bytes: usize) {
    let live = LIVE.get().saturating_add(bytes);
    LIVE.set(live);
    PEAK.set(PEAK.get().max(live));
    SUM.set(SUM.get().saturating_add(bytes));
}

/// What another thread allocated may be freed here.
fn less(bytes: usize) {
    LIVE.set(LIVE.get().saturating_sub(bytes));
}

#[expect(unsafe_code, reason = "every call goes to the system's allocator as it came")]
// SAFETY: see the reason; counting touches nothing but thread-local numbers, which need no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        less(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both exist while it is copied.
        more(size);
        less(layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, size) }
    }
}

/// What some work allocated on its thread, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    /// The most at the same time.
    pub peak: usize,
    /// All of it: what is copied again and again takes time.
    pub sum: usize,
}

/// Does the work and counts.
pub fn used<T>(work: impl FnOnce() -> T) -> (T, Used) {
    let (live, sum) = (LIVE.get(), SUM.get());
    PEAK.set(live);
    let done = work();
    let used = Used { peak: PEAK.get().saturating_sub(live), sum: SUM.get() - sum };
    (done, used)
}

/// What work may allocate, for each byte of its input and in any case.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// Bytes at the same time for each byte of input.
    pub peak: usize,
    /// Bytes in all for each byte of input.
    pub sum: usize,
    /// Bytes in any case, for both.
    pub base: usize,
}

/// Does the work, which must stay within the bound.
pub fn bounded<T>(bound: Bound, input: &[u8], work: impl FnOnce() -> T) -> T {
    let (done, used) = used(work);
    let bytes = input.len();
    assert!(used.peak <= bound.base + bound.peak * bytes, "{used:?} for {bytes} bytes, {bound:?} allowed");
    assert!(used.sum <= bound.base + bound.sum * bytes, "{used:?} for {bytes} bytes, {bound:?} allowed");
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_counted_at_its_peak_and_in_all() {
        let ((), used) = used(|| {
            drop(vec![0_u8; 1000]);
            drop(vec![0_u8; 2000]);
        });
        assert_eq!((used.peak, used.sum), (2000, 3000));
    }

    #[test]
    #[should_panic(expected = "allowed")]
    fn too_much_is_a_failure() {
        bounded(Bound { peak: 1, sum: 1, base: 10 }, b"12345", || vec![0_u8; 16]);
    }
}

//! The lock of a hub. Tests can let its threads take it in every possible order ([`explored`]).

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::{Mutex, MutexGuard, PoisonError},
};

#[cfg(test)]
pub(super) mod explored;

/// A mutex that goes on after a panic: what it protects is complete after every step.
pub(super) struct Lock<T> {
    value: Mutex<T>,
    #[cfg(test)]
    order: explored::Order,
}

/// The lock is taken.
pub(super) struct Locked<'l, T> {
    // The first to be dropped: who is next in order finds it free.
    value: MutexGuard<'l, T>,
    #[cfg(test)]
    _order: explored::Taken<'l>,
}

impl<T> Lock<T> {
    pub(super) fn new(value: T) -> Self {
        Self {
            value: Mutex::new(value),
            #[cfg(test)]
            order: explored::Order::new(),
        }
    }

    pub(super) fn lock(&self) -> Locked<'_, T> {
        #[cfg(test)]
        let order = self.order.take();
        Locked {
            value: self.value.lock().unwrap_or_else(PoisonError::into_inner),
            #[cfg(test)]
            _order: order,
        }
    }
}

impl<T> Deref for Locked<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Locked<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> fmt::Debug for Lock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock").finish_non_exhaustive()
    }
}

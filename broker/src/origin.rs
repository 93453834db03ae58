//! Where a pushed message was published: the broker's word for whose it is.

use wirepost_core::{contract::headers, names};

/// See the module. The exchange is the broker's own note on a message, which no publisher can write; headers are the
/// publisher's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The business that it was published by, where that is not the one that reads it.
    pub business: Option<Box<str>>,
    /// It was published to a [`share_exchange`](names::share_exchange).
    pub shared: bool,
    /// Whose clients its headers name; nothing without [`Self::shared`].
    pub to: Vec<Box<str>>,
}

impl Origin {
    /// Of a message that `reader` reads and that was published to `exchange`. An exchange that is not ours is one that
    /// an administrator bound to the business's own. `headers`: names and values of those that are texts; asked for
    /// only if they count.
    pub fn new<'h, H: IntoIterator<Item = (&'h str, &'h str)>>(
        reader: &str,
        exchange: &str,
        headers: impl FnOnce() -> H,
    ) -> Self {
        let Some(owner) = names::owner(exchange) else { return Self::default() };
        let business = (owner != reader).then(|| owner.into());
        if !names::is_share_exchange(exchange) {
            return Self { business, ..Self::default() };
        }
        let target = |(name, value): (&'h str, &'h str)| {
            (value == headers::TO_BUSINESS_VALUE).then(|| name.strip_prefix(headers::TO_BUSINESS)).flatten()
        };
        let to = headers().into_iter().filter_map(target).map(Box::from).collect();
        Self { business, shared: true, to }
    }

    /// Whether the broker was asked to copy it to this business.
    pub fn names(&self, business: &str) -> bool {
        self.to.iter().any(|to| **to == *business)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exchange_says_whose_a_message_is_and_headers_count_at_one_of_them_only() {
        let headers = [("to-business-chat", "true"), ("to-business-b", "yes"), ("message-type", "true")];
        let of = |exchange: &str| Origin::new("pay", exchange, || headers);
        for own in ["wirepost.pay.push", "", "amq.fanout", "team.exchange"] {
            assert_eq!(of(own), Origin::default(), "{own}");
        }
        let shared = of("wirepost.pay.share");
        assert!(shared.shared && shared.business.is_none() && shared.names("chat") && !shared.names("b"));
        let foreign = of("wirepost.shop.share");
        assert_eq!((foreign.business.as_deref(), foreign.names("chat")), (Some("shop"), true));
        let elsewhere = of("wirepost.shop.push");
        assert_eq!((elsewhere.business.as_deref(), elsewhere.shared, elsewhere.to.len()), (Some("shop"), false, 0));
    }
}

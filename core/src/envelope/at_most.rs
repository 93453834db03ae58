//! A list of which the first items are read. More of them cost no memory: a body may hold millions.

use std::{fmt, marker::PhantomData};

use serde::de::{Deserialize, Deserializer, IgnoredAny, SeqAccess, Visitor};

/// See the module.
#[derive(Debug)]
pub struct AtMost<T, const MOST: usize> {
    /// The first ones.
    pub items: Vec<T>,
    /// How many follow.
    pub more: usize,
}

impl<T, const MOST: usize> AtMost<T, MOST> {
    /// Of a JSON list.
    ///
    /// # Errors
    /// It is none, or one of the first items is no `T`.
    pub fn of<'de>(json: &'de [u8]) -> Result<Self, serde_json::Error>
    where
        T: Deserialize<'de>,
    {
        serde_json::from_slice(json)
    }
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for AtMost<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListVisitor<T, const MOST: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for ListVisitor<T, MOST> {
            type Value = AtMost<T, MOST>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut read = AtMost { items: Vec::new(), more: 0 };
                while read.items.len() < MOST
                    && let Some(item) = list.next_element()?
                {
                    read.items.push(item);
                }
                while list.next_element::<IgnoredAny>()?.is_some() {
                    read.more += 1;
                }
                Ok(read)
            }
        }
        deserializer.deserialize_seq(ListVisitor(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_items_are_read_and_the_others_are_counted() {
        let of = |json: &str| AtMost::<u8, 3>::of(json.as_bytes()).map(|AtMost { items, more }| (items, more)).ok();
        assert_eq!(of("[]"), Some((vec![], 0)));
        assert_eq!(of("[1, 2, 3]"), Some((vec![1, 2, 3], 0)));
        assert_eq!(of(r#"[1, 2, 3, "x", [4]]"#), Some((vec![1, 2, 3], 2)));
        for none in [r#"["x"]"#, "[1, 2, 3, 4", "[1] 2", "1", "null"] {
            assert_eq!(of(none), None, "{none}");
        }
        let AtMost { items, more } = AtMost::<u8, 3>::of(format!("[{}1]", "1,".repeat(1 << 20)).as_bytes()).unwrap();
        assert!(more == (1 << 20) - 2 && items.capacity() < 100);
    }
}

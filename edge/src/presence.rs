//! Who is here: a question about the connections of a business, what one edge knows, and how the parts of all edges make
//! one answer.
//!
//! A list has an order that no edge decides: the ids of connections begin with the time. So a page ends at an id, and
//! whoever asks for the next one, at whichever edge, names that id.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    catalog::Catalog,
    push::present::{Filter, Present},
};

/// Bytes of a page, but for one connection.
const PAGE_BYTES: usize = 1 << 20;
/// What a connection takes in a page beside its texts, approximately.
const AROUND: usize = 150;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Question {
    /// Whose clients.
    pub business: String,
    /// Which of them.
    pub filter: Filter,
    /// Which part of their list, if a list is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<PageOf>,
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PageOf {
    /// Connections at most.
    pub limit: usize,
    /// The id after which it begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Bytes at most, where less than a page of one edge is wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<usize>,
}

/// A connection in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// Its id.
    pub connection_id: String,
    /// Whose it is.
    pub unique_id: String,
    /// Of which type.
    pub client_type: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// When it began, ms since the epoch.
    pub since: i64,
    /// The name of its edge.
    pub edge: String,
}

/// What one edge knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Part {
    /// How many connections are meant.
    pub connections: u64,
    /// How many of each identity, in the order of the question.
    #[serde(default)]
    pub of_identities: Vec<u32>,
    /// The first ones of the page.
    #[serde(default)]
    pub page: Vec<Connection>,
    /// Whether more follow them here.
    #[serde(default)]
    pub more: bool,
}

/// What this edge knows.
pub async fn look(catalog: &Catalog, edge: &str, question: &Question) -> Part {
    let mut part = Part { of_identities: vec![0; question.filter.unique_ids.len()], ..Part::default() };
    let Some(hub) = catalog.hub(&question.business) else { return part };
    if question.page.is_none() && question.filter.is_everyone() {
        part.connections = *hub.clients().borrow() as u64;
        return part;
    }
    let mut page = question.page.as_ref().map(Page::new);
    hub.visit_present(&question.filter, |present| {
        part.connections += 1;
        if let Some(count) = part.of_identities.get_mut(present.identity) {
            *count += 1;
        }
        if let Some(page) = &mut page {
            page.note(present, edge);
        }
    })
    .await;
    if let Some(page) = page {
        (part.page, part.more) = page.finish();
    }
    part
}

/// The least ids beyond a page's beginning.
struct Page<'a> {
    of: &'a PageOf,
    found: BTreeMap<String, Connection>,
    more: bool,
}

impl<'a> Page<'a> {
    fn new(of: &'a PageOf) -> Self {
        Self { of, found: BTreeMap::new(), more: false }
    }

    fn note(&mut self, Present { mailbox, tags, .. }: Present<'_>, edge: &str) {
        let id = &mailbox.id;
        if self.of.after.as_ref().is_some_and(|after| id <= after) {
            return;
        }
        if self.found.len() >= self.of.limit {
            self.more = true;
            if self.found.last_key_value().is_some_and(|(last, _)| id > last) {
                return;
            }
            self.found.pop_last();
        }
        let connection = Connection {
            connection_id: id.clone(),
            unique_id: mailbox.unique_id.to_string(),
            client_type: mailbox.client_type.to_string(),
            tags: tags.to_vec(),
            since: began(id),
            edge: edge.to_owned(),
        };
        self.found.insert(id.clone(), connection);
    }

    fn finish(self) -> (Vec<Connection>, bool) {
        let (mut page, mut more) = (self.found.into_values().collect(), self.more);
        more |= cut(&mut page, self.of.bytes.map_or(PAGE_BYTES, |bytes| bytes.min(PAGE_BYTES)));
        (page, more)
    }
}

/// When a connection with this id began, ms since the epoch.
fn began(id: &str) -> i64 {
    let time = uuid::Uuid::try_parse(id).ok().and_then(|id| id.get_timestamp());
    time.map_or(0, |time| {
        let (seconds, nanos) = time.to_unix();
        i64::try_from(seconds * 1000 + u64::from(nanos) / 1_000_000).unwrap_or(i64::MAX)
    })
}

/// Cuts a page at its bytes. Whether anything was cut off.
fn cut(page: &mut Vec<Connection>, most: usize) -> bool {
    let mut bytes = 0;
    let fits = |one: &Connection| {
        let texts = one.tags.iter().chain([&one.unique_id, &one.client_type, &one.edge]);
        bytes += AROUND + texts.map(|text| text.len() + 3).sum::<usize>();
        bytes <= most
    };
    let kept = page.iter().map(fits).take_while(|fits| *fits).count().max(1);
    let cut = kept < page.len();
    page.truncate(kept);
    cut
}

/// What all edges know together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whole {
    /// How many connections are meant.
    pub connections: u64,
    /// How many of each identity, in the order of the question.
    pub of_identities: Vec<u64>,
    /// The page.
    pub page: Vec<Connection>,
    /// After which id the next page begins; `None`: there is none.
    pub next: Option<String>,
}

/// Puts the parts together.
pub fn whole(question: &Question, parts: Vec<Part>) -> Whole {
    let mut whole = Whole { of_identities: vec![0; question.filter.unique_ids.len()], ..Whole::default() };
    let Some(of) = &question.page else {
        for part in parts {
            whole.add(&part);
        }
        return whole;
    };
    // Beyond the last one of an edge that has more, something may be missing.
    let last = |part: &Part| part.page.last().filter(|_| part.more).map(|one| one.connection_id.clone());
    let horizon = parts.iter().filter_map(last).min();
    let mut page = Vec::new();
    for part in parts {
        whole.add(&part);
        page.extend(part.page);
    }
    page.sort_by(|one, other| one.connection_id.cmp(&other.connection_id));
    let found = page.len();
    page.retain(|one| horizon.as_ref().is_none_or(|horizon| one.connection_id <= *horizon));
    page.truncate(of.limit);
    cut(&mut page, PAGE_BYTES);
    let more = horizon.is_some() || page.len() < found;
    whole.next = page.last().filter(|_| more).map(|one| one.connection_id.clone());
    whole.page = page;
    whole
}

impl Whole {
    fn add(&mut self, part: &Part) {
        self.connections += part.connections;
        for (sum, count) in self.of_identities.iter_mut().zip(&part.of_identities) {
            *sum += u64::from(*count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(id: usize) -> Connection {
        Connection {
            connection_id: format!("{id:03}"),
            unique_id: String::new(),
            client_type: String::new(),
            tags: Vec::new(),
            since: 0,
            edge: String::new(),
        }
    }

    /// What an edge with these connections answers.
    fn part(ids: &[usize], of: &PageOf) -> Part {
        let after = ids.iter().map(|id| connection(*id)).filter(|one| Some(&one.connection_id) > of.after.as_ref());
        let mut page: Vec<_> = after.collect();
        let more = page.len() > of.limit;
        page.truncate(of.limit);
        Part { connections: ids.len() as u64, of_identities: Vec::new(), page, more }
    }

    #[test]
    fn pages_name_each_connection_once_whichever_edges_have_them() {
        let edges: [Vec<usize>; 3] = [(0..40).collect(), (40..43).collect(), (43..90).step_by(2).collect()];
        let mut all: Vec<_> = edges.concat();
        all.sort_unstable();
        for limit in [1, 2, 7, 30, 500] {
            let (mut seen, mut after) = (Vec::new(), None);
            loop {
                let page = Some(PageOf { limit, after, bytes: None });
                let question = Question { business: "pay".into(), filter: Filter::default(), page };
                let of = question.page.as_ref().unwrap();
                let whole = whole(&question, edges.iter().map(|ids| part(ids, of)).collect());
                assert_eq!(whole.connections, all.len() as u64);
                assert!(whole.page.len() <= limit);
                seen.extend(whole.page.iter().map(|one| one.connection_id.parse::<usize>().unwrap()));
                after = whole.next;
                if after.is_none() {
                    break;
                }
            }
            assert_eq!(seen, all, "limit {limit}");
        }
    }

    #[test]
    fn a_page_is_cut_at_its_bytes_and_says_so() {
        let large = |id| Connection { tags: vec!["x".repeat(256); 64], ..connection(id) };
        let mut page: Vec<_> = (0..100).map(large).collect();
        assert!(cut(&mut page, PAGE_BYTES) && (50..80).contains(&page.len()), "{}", page.len());
        let mut one = vec![Connection { tags: vec!["x".repeat(2 << 20)], ..connection(0) }];
        assert!(!cut(&mut one, PAGE_BYTES) && one.len() == 1);

        // One of many edges sends less.
        let of = PageOf { limit: 500, after: None, bytes: Some(64 << 10) };
        let mut part = Page::new(&of);
        part.found = (0..100).map(|id| (connection(id).connection_id, large(id))).collect();
        let (page, more) = part.finish();
        assert!(more && (2..5).contains(&page.len()), "{}", page.len());
    }
}

//! What validating content against a schema costs, in *steps*: one keyword evaluated for one value. Known before the validation runs, since
//! the evaluator can't be stopped half-way.
//!
//! A schema is split into nodes once. [`CostModel::worst`] bounds the steps by the number of values and bytes; where that is too much,
//! [`CostModel::count`] walks schema and content together as the evaluator would, without its shortcuts, and stops at the budget.

use std::collections::HashMap;

use jsonschema::PatternOptions;
use serde_json::{Map, Value, json};

/// Steps for a byte of text are counted in sixteenths.
const PARTS: u64 = 16;
/// Compiled sizes of patterns in bytes, and the steps that one up to that size takes for each byte of text. Most patterns take far less
/// (about a nanosecond a byte), but one whose automaton does not fit into its cache visits every open state for each of them. As measured
/// with patterns that are made for it: 320 ns, 0.6, 1.5, 3.3, 82 and 95 us a byte. The last size is the largest that is accepted.
const PATTERN_COSTS: [(usize, u64); 6] =
    [(2 << 10, 2), (8 << 10, 6), (32 << 10, 24), (128 << 10, 64), (512 << 10, 1_600), (super::PATTERN_BYTES, 1_900)];
/// Bytes by which each text counts as longer than it is: where it begins and ends, a pattern may have to look at all of its states, also for
/// a text without any character (160 us).
const ENDS: u64 = 2;
/// Items that `uniqueItems` compares pairwise; it hashes larger lists.
const PAIRWISE: u64 = 16;

/// A schema's nodes, references resolved; the first one is the root.
#[derive(Debug, Default)]
pub(super) struct CostModel {
    nodes: Vec<Node>,
    /// Of the root, see [`Cost`].
    total: Cost,
    /// Different patterns, and their compiled bytes: those of the size that each is counted as.
    pub(super) patterns: usize,
    pub(super) pattern_bytes: usize,
}

/// One subschema.
#[derive(Debug, Default)]
struct Node {
    /// For each value.
    own: u64,
    /// For each byte of a text, in sixteenths.
    text: u64,
    /// For each byte of a member's name, in sixteenths: `patternProperties`.
    name: u64,
    unique: bool,
    /// How often `in_place` is evaluated: more than once for `unevaluatedItems` and `unevaluatedProperties`, which evaluate each of them
    /// again to learn what it covered.
    times: u64,
    /// Subschemas of the same value.
    in_place: Vec<usize>,
    /// Of every item, and of the item at that place.
    items: Vec<usize>,
    prefix: Vec<usize>,
    /// Of every member, and of the member with that name.
    members: Vec<usize>,
    named: HashMap<String, usize>,
    /// Of every member's name.
    names: Vec<usize>,
}

/// Steps that a node and all below it take at most.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    /// For each value.
    value: u64,
    /// For each byte, in sixteenths.
    byte: u64,
    /// Deepest nesting of subschemas of the same value.
    depth: u64,
    /// Whether a failure makes the evaluator collect the errors of several branches.
    branches: bool,
}

impl CostModel {
    /// The model of a schema whose references are known to exist and to have no cycle.
    pub(super) fn new(schema: &Value) -> Self {
        let mut builder = CostModelBuilder {
            root: schema,
            nodes: Vec::new(),
            totals: Vec::new(),
            known: HashMap::new(),
            patterns: HashMap::new(),
            pattern_bytes: 0,
        };
        let root = builder.node(schema);
        Self {
            total: builder.totals[root],
            nodes: builder.nodes,
            patterns: builder.patterns.len(),
            pattern_bytes: builder.pattern_bytes,
        }
    }

    /// Whether explaining a mismatch may take much longer than finding it.
    pub(super) fn branches(&self) -> bool {
        self.total.branches
    }

    /// The most steps for one value, apart from its text.
    pub(super) fn worst_of_one_value(&self) -> u64 {
        self.total.value
    }

    /// The most steps that any content of that text can take.
    pub(super) fn worst(&self, content: &str) -> u64 {
        // Each value but the outermost one follows one of these; those within texts count as well. The quotes of a text are its ends.
        let values = content.bytes().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count() as u64 + 1;
        let text = (content.len() as u64).saturating_mul(self.total.byte) / PARTS;
        values.saturating_mul(self.total.value).saturating_add(text)
    }

    /// The steps that this content takes; `None`: more than `budget`.
    pub(super) fn count(&self, content: &Value, budget: u64) -> Option<u64> {
        let mut left = budget;
        self.walk(self.nodes.len() - 1, content, &mut left)?;
        Some(budget - left)
    }

    fn walk(&self, node: usize, value: &Value, left: &mut u64) -> Option<()> {
        let node = &self.nodes[node];
        spend(left, node.own)?;
        let before = *left;
        for below in &node.in_place {
            self.walk(*below, value, left)?;
        }
        spend(left, (before - *left).saturating_mul(node.times - 1))?;
        match value {
            Value::String(text) => spend(left, of_text(node.text, text)),
            Value::Array(items) => {
                if node.unique {
                    spend(left, size(value).saturating_mul(PAIRWISE.min(items.len() as u64)))?;
                }
                for (i, item) in items.iter().enumerate() {
                    for below in node.items.iter().chain(node.prefix.get(i)) {
                        self.walk(*below, item, left)?;
                    }
                }
                Some(())
            }
            Value::Object(members) => {
                for (name, member) in members {
                    spend(left, of_text(node.name, name))?;
                    if !node.names.is_empty() {
                        let name = Value::String(name.clone());
                        for below in &node.names {
                            self.walk(*below, &name, left)?;
                        }
                    }
                    for below in node.members.iter().chain(node.named.get(name)) {
                        self.walk(*below, member, left)?;
                    }
                }
                Some(())
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => Some(()),
        }
    }
}

/// Steps for a text, at so many sixteenths a byte.
fn of_text(parts: u64, text: &str) -> u64 {
    parts.saturating_mul(text.len() as u64 + ENDS) / PARTS
}

fn spend(left: &mut u64, steps: u64) -> Option<()> {
    *left = left.checked_sub(steps)?;
    Some(())
}

/// Values in a value, itself included.
fn size(value: &Value) -> u64 {
    1 + match value {
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(members) => members.values().map(size).sum(),
        _ => 0,
    }
}

struct CostModelBuilder<'a> {
    root: &'a Value,
    /// Children come before their parents.
    nodes: Vec<Node>,
    totals: Vec<Cost>,
    /// By address: a subschema that is referenced twice is one node.
    known: HashMap<*const Value, usize>,
    /// Steps of those that were tried.
    patterns: HashMap<&'a str, u64>,
    pattern_bytes: usize,
}

impl<'a> CostModelBuilder<'a> {
    fn node(&mut self, schema: &'a Value) -> usize {
        if let Some(known) = self.known.get(&std::ptr::from_ref(schema)) {
            return *known;
        }
        let mut node = Node { own: 1, times: 1, ..Node::default() };
        let mut branches = false;
        let mut unevaluated = false;
        for (key, value) in schema.as_object().into_iter().flatten() {
            node.own += 1;
            match key.as_str() {
                "$ref" => node.in_place.extend(self.target(value)),
                "allOf" => node.in_place.extend(self.list(value)),
                "anyOf" | "oneOf" => {
                    branches = true;
                    node.in_place.extend(self.list(value));
                }
                "not" | "if" | "then" | "else" => node.in_place.push(self.node(value)),
                "dependentSchemas" | "dependencies" => node.in_place.extend(self.map(value).into_values()),
                "items" | "additionalItems" | "contains" => match value {
                    Value::Array(_) => node.prefix = self.list(value),
                    _ => node.items.push(self.node(value)),
                },
                "prefixItems" => node.prefix = self.list(value),
                "unevaluatedItems" => {
                    unevaluated = true;
                    node.items.push(self.node(value));
                }
                "properties" => node.named = self.map(value),
                "additionalProperties" => node.members.push(self.node(value)),
                "unevaluatedProperties" => {
                    unevaluated = true;
                    node.members.push(self.node(value));
                }
                "patternProperties" => {
                    let patterns = value.as_object().into_iter().flat_map(Map::keys);
                    node.name += patterns.map(|pattern| self.pattern(pattern)).sum::<u64>();
                    node.members.extend(self.map(value).into_values());
                }
                "propertyNames" => node.names.push(self.node(value)),
                "pattern" => node.text += value.as_str().map_or(0, |pattern| self.pattern(pattern)),
                // Formats that are grammars, and what is decoded.
                "format" | "contentMediaType" | "contentEncoding" => node.text += 4 * PARTS,
                "minLength" | "maxLength" => node.text += 1,
                "uniqueItems" => node.unique = value == &Value::Bool(true),
                // Lists of values to compare with.
                "enum" | "const" | "required" | "dependentRequired" => node.own += size(value),
                _ => {}
            }
        }
        let total = self.total(&mut node, branches, unevaluated);
        self.nodes.push(node);
        self.totals.push(total);
        let index = self.nodes.len() - 1;
        self.known.insert(std::ptr::from_ref(schema), index);
        index
    }

    fn total(&self, node: &mut Node, branches: bool, unevaluated: bool) -> Cost {
        let mut total = Cost {
            value: node.own + if node.unique { PAIRWISE } else { 0 },
            byte: node.text + node.name,
            depth: 0,
            branches,
        };
        let in_place: Vec<_> = node.in_place.iter().map(|below| self.totals[*below]).collect();
        total.depth = in_place.iter().map(|below| below.depth + 1).max().unwrap_or(0);
        if unevaluated {
            node.times = 2 + total.depth;
        }
        let elsewhere = [&node.items, &node.prefix, &node.members, &node.names].into_iter().flatten();
        let elsewhere = elsewhere.chain(node.named.values()).map(|below| (self.totals[*below], 1_u64));
        for (below, times) in in_place.into_iter().map(|below| (below, node.times)).chain(elsewhere) {
            total.value = total.value.saturating_add(below.value.saturating_mul(times));
            total.byte = total.byte.saturating_add(below.byte.saturating_mul(times));
            total.branches |= below.branches;
        }
        total
    }

    fn target(&mut self, reference: &Value) -> Option<usize> {
        let pointer = reference.as_str()?.strip_prefix('#')?;
        let target = self.root.pointer(&super::unescape(pointer))?;
        Some(self.node(target))
    }

    fn list(&mut self, schemas: &'a Value) -> Vec<usize> {
        schemas.as_array().into_iter().flatten().map(|schema| self.node(schema)).collect()
    }

    fn map(&mut self, schemas: &'a Value) -> HashMap<String, usize> {
        let schemas = schemas.as_object().into_iter().flatten();
        schemas.map(|(name, schema)| (name.clone(), self.node(schema))).collect()
    }

    /// Steps for each byte of text that a pattern is matched with, in sixteenths; from its compiled size, which is found by trying. Beyond what
    /// all patterns of a schema may have together no further one is tried.
    fn pattern(&mut self, pattern: &'a str) -> u64 {
        if let Some(known) = self.patterns.get(pattern) {
            return *known;
        }
        if self.pattern_bytes > super::ALL_PATTERN_BYTES {
            return 0;
        }
        let schema = json!({"pattern": pattern});
        let fits = |(size, _): &&(usize, u64)| {
            let options = PatternOptions::regex().size_limit(*size).dfa_size_limit(super::PATTERN_BYTES);
            jsonschema::options().with_pattern_options(options).offline().build(&schema).is_ok()
        };
        let [.., largest] = &PATTERN_COSTS;
        let (size, steps) = PATTERN_COSTS.iter().find(fits).unwrap_or(largest);
        self.pattern_bytes += size;
        self.patterns.insert(pattern, PARTS * steps);
        PARTS * steps
    }
}

//! What is said of interfaces in the log: each of the first few in a second, and how many more there were.

use std::collections::BTreeMap;

/// So many lines of each kind in a second.
const LINES: u32 = 10;

/// Lines of this second by kind.
#[derive(Debug, Default)]
pub(super) struct News(BTreeMap<&'static str, u32>);

impl News {
    /// Whether a line of this kind is to be written; else it is counted.
    pub(super) fn is_told(&mut self, kind: &'static str) -> bool {
        let lines = self.0.entry(kind).or_default();
        *lines += 1;
        *lines <= LINES
    }

    /// Says what was not told in the last second, in one line.
    pub(super) fn tell_the_rest(&mut self) {
        if let Some(rest) = self.rest() {
            tracing::info!("interfaces in the last second, not logged one by one: {rest}");
        }
        self.0.clear();
    }

    fn rest(&self) -> Option<String> {
        let more = self.0.iter().filter(|(_, lines)| **lines > LINES);
        let parts: Vec<_> = more.map(|(kind, lines)| format!("{} {kind}", lines - LINES)).collect();
        (!parts.is_empty()).then(|| parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_ten_lines_and_a_sum() {
        let mut news = News::default();
        assert_eq!((0..200).filter(|_| news.is_told("attached")).count(), 10);
        assert!(news.is_told("gone"));
        assert_eq!(news.rest().as_deref(), Some("190 attached"));
        news.tell_the_rest();
        assert!(news.is_told("attached") && news.rest().is_none());
    }
}

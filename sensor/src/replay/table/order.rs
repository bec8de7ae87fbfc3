//! Slots in the order in which they were last seen: doubly linked lists over one array.

/// No slot.
const NONE: u32 = u32::MAX;

/// A list of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum List {
    /// Flows that go on.
    Open,
    /// Closed flows that wait for late packets.
    Lingering,
}

impl List {
    pub(super) const ALL: [List; 2] = [List::Open, List::Lingering];
}

#[derive(Clone, Copy)]
struct Link {
    before: u32,
    after: u32,
    list: Option<List>,
}

#[derive(Clone, Copy)]
struct Ends {
    first: u32,
    last: u32,
}

/// The lists.
pub(super) struct Order {
    links: Vec<Link>,
    ends: [Ends; 2],
}

impl Default for Order {
    fn default() -> Order {
        Order { links: Vec::new(), ends: [Ends { first: NONE, last: NONE }; 2] }
    }
}

impl Order {
    /// A slot more, in no list.
    pub(super) fn grow(&mut self) {
        self.links.push(Link { before: NONE, after: NONE, list: None });
    }

    pub(super) fn first(&self, list: List) -> Option<u32> {
        Some(self.ends[list as usize].first).filter(|number| *number != NONE)
    }

    /// The slots of a list, those idle longest first.
    pub(super) fn of(&self, list: List) -> impl Iterator<Item = u32> {
        let next = |number: &u32| Some(self.links[*number as usize].after).filter(|number| *number != NONE);
        std::iter::successors(self.first(list), next)
    }

    /// Puts a slot that is in no list at the end of one.
    pub(super) fn push(&mut self, list: List, number: u32) {
        let ends = &mut self.ends[list as usize];
        let before = std::mem::replace(&mut ends.last, number);
        match before {
            NONE => ends.first = number,
            _ => self.links[before as usize].after = number,
        }
        self.links[number as usize] = Link { before, after: NONE, list: Some(list) };
    }

    pub(super) fn remove(&mut self, number: u32) {
        let Link { before, after, list } = self.links[number as usize];
        let Some(list) = list else { return };
        match before {
            NONE => self.ends[list as usize].first = after,
            _ => self.links[before as usize].after = after,
        }
        match after {
            NONE => self.ends[list as usize].last = before,
            _ => self.links[after as usize].before = before,
        }
        self.links[number as usize] = Link { before: NONE, after: NONE, list: None };
    }

    pub(super) fn move_to_end(&mut self, list: List, number: u32) {
        if self.ends[list as usize].last != number {
            self.remove(number);
            self.push(list, number);
        }
    }
}

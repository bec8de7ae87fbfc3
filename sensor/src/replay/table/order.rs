//! Slots in the order in which they were last seen: doubly linked lists over one array.

use sensor_common::table::phase;

/// No slot.
const NONE: u32 = u32::MAX;

/// A list of slots: those of one phase ([`phase`]), but closed flows that do not linger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum List {
    /// Closed flows that wait for late packets.
    Lingering,
    /// Nothing shows that there are two ends.
    OneSided,
    /// Both directions have packets; or closed, and kept as long as these.
    Answered,
    /// Established TCP connections.
    Established,
}

impl List {
    pub(super) const ALL: [List; 4] = [List::Lingering, List::OneSided, List::Answered, List::Established];

    /// The list of a flow in this phase. `lingers`: closed flows have a time of their own.
    pub(super) fn of(phase: u8, lingers: bool) -> List {
        match phase {
            phase::CLOSED if lingers => List::Lingering,
            phase::ONE_SIDED => List::OneSided,
            phase::ESTABLISHED => List::Established,
            _ => List::Answered,
        }
    }
}

#[derive(Clone, Copy)]
struct Link {
    before: u32,
    after: u32,
    list: Option<List>,
    /// How many times a slot had been touched before.
    turn: u64,
}

#[derive(Clone, Copy)]
struct Ends {
    first: u32,
    last: u32,
}

/// The lists.
pub(super) struct Order {
    links: Vec<Link>,
    ends: [Ends; List::ALL.len()],
    turn: u64,
}

impl Default for Order {
    fn default() -> Order {
        Order { links: Vec::new(), ends: [Ends { first: NONE, last: NONE }; List::ALL.len()], turn: 0 }
    }
}

impl Order {
    /// A slot more, in no list.
    pub(super) fn grow(&mut self) {
        self.links.push(Link { before: NONE, after: NONE, list: None, turn: 0 });
    }

    pub(super) fn first(&self, list: List) -> Option<u32> {
        Some(self.ends[list as usize].first).filter(|number| *number != NONE)
    }

    /// The slots of a list, those idle longest first.
    pub(super) fn slots(&self, list: List) -> impl Iterator<Item = u32> {
        let next = |number: &u32| Some(self.links[*number as usize].after).filter(|number| *number != NONE);
        std::iter::successors(self.first(list), next)
    }

    /// When a slot was touched last, as a number that only grows.
    pub(super) fn turn(&self, number: u32) -> u64 {
        self.links[number as usize].turn
    }

    /// Puts a slot that is in no list at the end of one.
    pub(super) fn push(&mut self, list: List, number: u32) {
        let ends = &mut self.ends[list as usize];
        let before = std::mem::replace(&mut ends.last, number);
        match before {
            NONE => ends.first = number,
            _ => self.links[before as usize].after = number,
        }
        self.turn += 1;
        self.links[number as usize] = Link { before, after: NONE, list: Some(list), turn: self.turn };
    }

    pub(super) fn remove(&mut self, number: u32) {
        let Link { before, after, list, .. } = self.links[number as usize];
        let Some(list) = list else { return };
        match before {
            NONE => self.ends[list as usize].first = after,
            _ => self.links[before as usize].after = after,
        }
        match after {
            NONE => self.ends[list as usize].last = before,
            _ => self.links[after as usize].before = before,
        }
        self.links[number as usize] = Link { before: NONE, after: NONE, list: None, turn: 0 };
    }

    pub(super) fn move_to_end(&mut self, list: List, number: u32) {
        if self.ends[list as usize].last == number {
            self.turn += 1;
            self.links[number as usize].turn = self.turn;
        } else {
            self.remove(number);
            self.push(list, number);
        }
    }
}

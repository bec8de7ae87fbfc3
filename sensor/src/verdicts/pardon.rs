//! Undone verdicts: what an operator took back, models and rules do not decide again for a while. Pure: time is an argument.
//!
//! Invariant: bounded; a pardon has an end. Not kept over restarts. Asked by the poll thread before each verdict that is no
//! operator's.

use std::collections::HashMap;

use super::scope::Scope;

/// What is pardoned, and until when (monotonic ns).
#[derive(Debug)]
pub struct Pardons {
    most: usize,
    until: HashMap<Scope, u64>,
}

impl Pardons {
    /// None yet, and at most so many at once.
    pub fn new(most: usize) -> Pardons {
        Pardons { most, until: HashMap::new() }
    }

    /// Pardons `scope` until `until_ns`. If there are too many, the ended ones go first; whether there was room.
    pub fn grant(&mut self, scope: Scope, until_ns: u64, now_ns: u64) -> bool {
        if self.until.len() >= self.most {
            self.until.retain(|_, until| *until > now_ns);
        }
        let room = self.until.len() < self.most;
        if room {
            self.until.insert(scope, until_ns);
        }
        room
    }

    /// Whether nothing is decided of `scope`.
    pub fn holds(&mut self, scope: &Scope, now_ns: u64) -> bool {
        match self.until.get(scope) {
            Some(until) if *until > now_ns => true,
            Some(_) => {
                self.until.remove(scope);
                false
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pardon_holds_for_its_scope_and_time() {
        let scope = |text: &str| text.parse::<Scope>().expect(text);
        let flow = scope("tcp,198.18.66.7:1,198.18.0.1:2");
        let mut pardons = Pardons::new(2);
        assert!(pardons.grant(flow, 100, 0));
        assert!(pardons.holds(&flow, 99) && !pardons.holds(&scope("198.18.66.7"), 99));
        assert!(!pardons.holds(&flow, 100));
        assert!(pardons.grant(scope("198.18.66.7"), 200, 0) && pardons.grant(scope("198.18.66.8"), 200, 0));
        assert!(!pardons.grant(flow, 200, 0), "full");
        assert!(pardons.grant(flow, 300, 200), "the ended ones made room");
    }
}

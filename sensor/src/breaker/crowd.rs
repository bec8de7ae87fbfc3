//! Who was judged lately, source by source: what tells a model that accuses everybody from an attacker.
//!
//! A source is an address, for IPv6 its /64: one host owns that many addresses. It counts once, however many flows it
//! has. Pure: times go in. Invariant: bounded, and accused sources find room when the others have filled theirs.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

/// Seconds as monotonic ns.
const SECOND: u64 = 1_000_000_000;
/// A busy host shows within this that its model accuses everybody, a quiet one within [`MINUTE`].
const SHORT: u64 = 10 * SECOND;
/// One source that is accused again within this is one decision.
pub(super) const MINUTE: u64 = 60 * SECOND;
/// How long a source that was let pass speaks for the model.
const HOUR: u64 = 3_600 * SECOND;
/// From so many accused sources in a minute on, those of that minute are compared with each other. Fewer are compared
/// with all that the model let pass in the last hour: on a quiet night, three attackers are all there is to see.
const MANY: u64 = 10;

/// The source that an address belongs to.
pub fn source_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// When a source had a flow that was let pass, and one that was not.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    passed: Option<u64>,
    accused: Option<u64>,
}

impl Seen {
    fn accused_within(&self, window: u64, now: u64) -> bool {
        self.accused.is_some_and(|at| now.saturating_sub(at) < window)
    }

    fn passed_within(&self, window: u64, now: u64) -> bool {
        self.passed.is_some_and(|at| now.saturating_sub(at) < window)
    }
}

/// Accused sources among those they are compared with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Sources with a flow that would be dropped or limited.
    pub accused: u64,
    /// These and the others.
    pub of: u64,
}

impl Share {
    /// From 0 to 1.
    pub fn value(self) -> f64 {
        self.accused as f64 / self.of.max(1) as f64
    }
}

/// The sources of the last hour.
#[derive(Debug)]
pub(super) struct Crowd {
    seen: HashMap<IpAddr, Seen>,
    most: usize,
}

impl Crowd {
    /// Nobody yet, and at most so many sources at once. An eighth of the room is for accused ones.
    pub(super) fn new(most: usize) -> Crowd {
        Crowd { seen: HashMap::new(), most }
    }

    /// A flow of this source was judged and is let pass.
    pub(super) fn passed(&mut self, address: IpAddr, now: u64) {
        if let Some(seen) = self.entry(address, self.most - self.most / 8) {
            seen.passed = Some(now);
        }
    }

    /// A flow of this source would be dropped or limited. Whether that is news: none was in the last minute.
    pub(super) fn accused(&mut self, address: IpAddr, now: u64) -> bool {
        let Some(seen) = self.entry(address, self.most) else { return true };
        let news = !seen.accused_within(MINUTE, now);
        seen.accused = Some(now);
        news
    }

    fn entry(&mut self, address: IpAddr, most: usize) -> Option<&mut Seen> {
        let source = source_of(address);
        let room = self.seen.len() < most || self.seen.contains_key(&source);
        room.then(|| self.seen.entry(source).or_default())
    }

    /// Lets go of whoever was not seen for an hour.
    pub(super) fn forget(&mut self, now: u64) {
        self.seen.retain(|_, seen| seen.passed_within(HOUR, now) || seen.accused_within(MINUTE, now));
    }

    /// Another model judges: who was let pass before says nothing of it.
    pub(super) fn another_model(&mut self) {
        self.seen.retain(|_, seen| {
            seen.passed = None;
            seen.accused.is_some()
        });
    }

    /// Nobody is accused any more.
    pub(super) fn acquit(&mut self) {
        self.seen.values_mut().for_each(|seen| seen.accused = None);
    }

    /// Sources of the last hour.
    pub(super) fn len(&self) -> usize {
        self.seen.len()
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    /// The accused of the last minute, and what share of all they are; the largest share that counts.
    pub(super) fn share(&self, now: u64) -> Share {
        let within = |window: u64| {
            let accused = self.seen.values().filter(|seen| seen.accused_within(window, now)).count() as u64;
            let others = |seen: &&Seen| !seen.accused_within(window, now) && seen.passed_within(window, now);
            Share { accused, of: accused + self.seen.values().filter(others).count() as u64 }
        };
        let minute = within(MINUTE);
        if minute.accused < MANY {
            let others = |seen: &&Seen| !seen.accused_within(MINUTE, now) && seen.passed_within(HOUR, now);
            return Share { of: minute.accused + self.seen.values().filter(others).count() as u64, ..minute };
        }
        let short = within(SHORT);
        if short.accused >= MANY && short.value() > minute.value() { short } else { minute }
    }

    /// The same for as long as flows are held back: `held` are the sources with a flow under a verdict.
    pub(super) fn share_with(&self, held: u64, now: u64) -> Share {
        let Share { accused, of } = self.share(now);
        let more = held.saturating_sub(accused);
        Share { accused: accused + more, of: of + more }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        IpAddr::from((0xc612_0000 + number).to_be_bytes())
    }

    #[test]
    fn an_ipv6_host_is_one_source() {
        let mut crowd = Crowd::new(64);
        let of = |text: &str| text.parse::<IpAddr>().expect(text);
        assert!(crowd.accused(of("2001:db8::1"), SECOND));
        assert!(!crowd.accused(of("2001:db8::2"), SECOND), "of the same /64");
        assert!(crowd.accused(of("2001:db8:0:1::2"), SECOND));
        assert_eq!(crowd.share(SECOND), Share { accused: 2, of: 2 });
    }

    #[test]
    fn a_source_is_news_once_a_minute() {
        let mut crowd = Crowd::new(64);
        assert!(crowd.accused(address(1), 0));
        assert!((1..300).all(|second| !crowd.accused(address(1), second * SECOND)), "it goes on");
        assert!(crowd.accused(address(1), 299 * SECOND + MINUTE));
    }

    #[test]
    fn few_accused_are_compared_with_the_hour() {
        let mut crowd = Crowd::new(1_024);
        (0..40).for_each(|number| crowd.passed(address(number), SECOND));
        let night = SECOND + 50 * MINUTE;
        (100..103).for_each(|number| assert!(crowd.accused(address(number), night)));
        assert_eq!(crowd.share(night), Share { accused: 3, of: 43 });
        crowd.another_model();
        assert_eq!(crowd.share(night), Share { accused: 3, of: 3 }, "this model has let nobody pass");
    }

    #[test]
    fn many_accused_are_compared_with_those_who_are_there() {
        let mut crowd = Crowd::new(1_024);
        (0..400).for_each(|number| crowd.passed(address(number), SECOND));
        // A minute later the model goes wrong; one client comes every 300 ms.
        let begin = SECOND + MINUTE;
        let tripped = (0..100).find(|number| {
            let now = begin + u64::from(*number) * 300_000_000;
            crowd.accused(address(*number), now);
            let share = crowd.share(now);
            share.accused >= MANY && share.value() > 0.5
        });
        assert!(tripped.is_some_and(|number| u64::from(number) * 300_000_000 < SHORT), "{tripped:?}");
    }

    #[test]
    fn accused_sources_have_room_of_their_own() {
        let mut crowd = Crowd::new(64);
        (0..100).for_each(|number| crowd.passed(address(number), SECOND));
        assert_eq!(crowd.len(), 56);
        (200..300).for_each(|number| assert!(crowd.accused(address(number), SECOND)));
        assert_eq!((crowd.len(), crowd.share(SECOND)), (64, Share { accused: 8, of: 64 }));
        crowd.forget(SECOND + MINUTE);
        assert_eq!(crowd.len(), 56);
        crowd.forget(SECOND + HOUR);
        assert!(crowd.is_empty());
    }
}

//! How many flows of one source a model has accused of late. One accused flow is often an accident: a pause in an SSH
//! login, a log shipper that never gets an answer. Ten in a minute are none: of 1,685 benign sources none had so many,
//! and 96 % of the attacks' flows were of sources that had (docs/decisions/0032).
//!
//! A source is an address, of IPv6 its /64. Who forges addresses can give another one company; that costs the other
//! only flows that the model accuses anyway.
//!
//! Pure. Invariant: bounded in memory; a source that is forgotten begins anew, and is tagged meanwhile.

use std::collections::HashMap;
use std::net::IpAddr;

use sensor_common::flow::FlowRecord;
use sensor_common::packet::protocol;

use crate::breaker::source_of;
use crate::model::Score;

/// Sources that are followed.
const MOST: usize = 8_192;
/// For so long an accused flow counts, ns.
const WINDOW_NS: u64 = 60_000_000_000;
/// A flow that is a flood by itself: packets of its initiator, in all and a second.
const HEAVY_PACKETS: u64 = 1_000;
const HEAVY_RATE: u64 = 1_000;
/// So many times the other end's packets.
const HEAVY_SIDE: u64 = 10;

/// Accused flows by source.
#[derive(Debug)]
pub struct Company {
    /// Flows that make a source's company; 0 or 1: each is enough.
    enough: usize,
    sources: HashMap<IpAddr, Vec<Accused>>,
}

/// A flow, and when it was accused last.
#[derive(Clone, Copy, Debug)]
struct Accused {
    /// Its beginning tells a flow from others of its source, with its ports.
    id: (u64, u16, u16),
    at_ns: u64,
    score: Score,
}

impl Company {
    /// `enough`: `policy.accused_flows`.
    pub fn new(enough: u32) -> Company {
        Company { enough: enough as usize, sources: HashMap::new() }
    }

    /// Another number is enough from now on.
    pub fn set_enough(&mut self, enough: u32) {
        self.enough = enough as usize;
    }

    /// The model accuses a flow of `source` (again) with this score. Whether there are enough of them.
    pub fn accuse(&mut self, source: IpAddr, record: &FlowRecord, score: Score, now_ns: u64) -> bool {
        if self.enough <= 1 {
            return true;
        }
        let source = source_of(source);
        if !self.sources.contains_key(&source) && self.sources.len() >= MOST {
            self.forget(now_ns);
        }
        let flows = self.sources.entry(source).or_default();
        flows.retain(|flow| now_ns.saturating_sub(flow.at_ns) < WINDOW_NS);
        let id = id_of(record);
        match flows.iter_mut().find(|flow| flow.id == id) {
            Some(flow) => (flow.at_ns, flow.score) = (now_ns, score),
            None => {
                // More than enough say no more.
                if flows.len() >= self.enough {
                    flows.remove(0);
                }
                flows.push(Accused { id, at_ns: now_ns, score });
            }
        }
        flows.len() >= self.enough
    }

    /// The score with which this flow of `source` was accused last, if that was of late.
    pub fn accused(&self, source: IpAddr, record: &FlowRecord, now_ns: u64) -> Option<Score> {
        let id = id_of(record);
        let flow = self.sources.get(&source_of(source))?.iter().find(|flow| flow.id == id)?;
        (now_ns.saturating_sub(flow.at_ns) < WINDOW_NS).then_some(flow.score)
    }

    /// Makes room: what is over, else the source whose last accused flow is the oldest of all.
    fn forget(&mut self, now_ns: u64) {
        let last = |flows: &Vec<Accused>| flows.iter().map(|flow| flow.at_ns).max().unwrap_or_default();
        self.sources.retain(|_, flows| now_ns.saturating_sub(last(flows)) < WINDOW_NS);
        if self.sources.len() >= MOST
            && let Some(oldest) = self.sources.iter().min_by_key(|(_, flows)| last(flows)).map(|(source, _)| *source)
        {
            self.sources.remove(&oldest);
        }
    }
}

fn id_of(record: &FlowRecord) -> (u64, u16, u16) {
    (record.first_ns, record.key.low_port, record.key.high_port)
}

/// Whether a flow needs no company: datagrams that nobody answers, at a rate that no collector gets.
pub fn is_heavy(record: &FlowRecord) -> bool {
    let sender = usize::from(record.directions[1].packets > record.directions[0].packets);
    let (sent, answered) = (record.directions[sender].packets, record.directions[1 - sender].packets);
    let lasted_ns = record.last_ns.saturating_sub(record.first_ns).max(1);
    record.key.protocol != protocol::TCP
        && sent >= HEAVY_PACKETS
        && sent / HEAVY_SIDE >= answered
        && u128::from(sent) * 1_000_000_000 / u128::from(lasted_ns) >= u128::from(HEAVY_RATE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const SURE: Score = Score { label: 1, score: 1.0 };

    #[test]
    fn what_a_flow_was_accused_of_is_known_for_a_minute() {
        let mut company = Company::new(10);
        company.accuse(source(1), &flow(1), SURE, SECOND);
        assert_eq!(company.accused(source(1), &flow(1), 60 * SECOND), Some(SURE));
        assert_eq!(company.accused(source(1), &flow(1), 61 * SECOND), None);
        assert_eq!(company.accused(source(1), &flow(2), 2 * SECOND), None);
        assert_eq!(company.accused(source(2), &flow(1), 2 * SECOND), None);
    }

    fn flow(port: u16) -> FlowRecord {
        let mut record: FlowRecord = bytemuck::Zeroable::zeroed();
        (record.key.low_port, record.first_ns) = (port, SECOND);
        record
    }

    fn source(last: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(0xc612_0000 + last).into()
    }

    #[test]
    fn ten_flows_in_a_minute_are_company_and_one_flow_often_is_not() {
        let mut company = Company::new(10);
        for second in 0..600 {
            assert!(!company.accuse(source(1), &flow(1), SURE, second * SECOND), "one flow, judged each second");
        }
        let accused: Vec<_> = (0..10).map(|port| company.accuse(source(2), &flow(port), SURE, 700 * SECOND)).collect();
        assert_eq!(accused.iter().position(|enough| *enough), Some(9), "with the tenth");
        assert!(company.accuse(source(2), &flow(0), SURE, 701 * SECOND), "and the first one when it is judged again");
        assert!(!company.accuse(source(2), &flow(77), SURE, 800 * SECOND), "they are long ago");
        for flow_number in 0..100 {
            let at = (900 + u64::from(flow_number) * 7) * SECOND;
            assert!(!company.accuse(source(3), &flow(flow_number), SURE, at), "one in seven seconds");
        }
        assert!(
            Company::new(0).accuse(source(1), &flow(1), SURE, 0)
                && Company::new(1).accuse(source(1), &flow(1), SURE, 0)
        );
    }

    #[test]
    fn a_64_is_one_source_and_memory_is_bounded() {
        let mut company = Company::new(10);
        let address = |last: u128| IpAddr::from(std::net::Ipv6Addr::from_bits(0x2001_0db8 << 96 | last));
        assert!((0..10).any(|last| company.accuse(address(last), &flow(last as u16), SURE, SECOND)));
        for number in 0..3 * MOST as u32 {
            company.accuse(source(number), &flow(1), SURE, 2 * SECOND + u64::from(number));
        }
        assert!(company.sources.len() <= MOST);
        assert!(company.sources.values().all(|flows| flows.len() <= 10));
    }

    #[test]
    fn only_unanswered_datagrams_in_thousands_a_second_need_no_company() {
        let mut record = flow(1);
        record.key.protocol = protocol::UDP;
        (record.directions[0].packets, record.last_ns) = (3_000, 2 * SECOND);
        assert!(is_heavy(&record));
        record.directions[1].packets = 400;
        assert!(!is_heavy(&record), "answered");
        record.directions[1].packets = 0;
        record.last_ns = 31 * SECOND;
        assert!(!is_heavy(&record), "a hundred a second");
        (record.key.protocol, record.last_ns) = (protocol::TCP, 2 * SECOND);
        assert!(!is_heavy(&record));
    }
}

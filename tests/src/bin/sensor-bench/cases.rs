//! What `sensor-bench datapath` measures: groups of cases, each group on frames of one kind, so that a case is held against
//! the floor over the same frames.

use anyhow::Result;
use sensor::bpf::bench::Floor;
use sensor::bpf::load::Hook;

use crate::frames;

/// The loads that cases run in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// As the agent does it by default where the kernel can, with a large table.
    Large,
    /// Without support for frames of several buffers, the smallest table; full of flows with history while rounds run.
    Small,
    /// As `Small`, without host context.
    NoContext,
    /// The smallest table, which the flood fills itself.
    Flooded,
    /// With all tunnels read.
    Tunnels,
    /// With networks that are blocked, and an empty table.
    Blocked,
    /// With single addresses that are blocked, and an empty table.
    Addresses,
}

/// All of them.
pub(crate) const LOADS: [Load; 7] =
    [Load::Large, Load::Small, Load::NoContext, Load::Flooded, Load::Tunnels, Load::Blocked, Load::Addresses];

/// What the case's flow is brought to before the first round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing is done.
    Plain,
    /// The record holds a drop verdict.
    Dropped,
    /// The record holds a tag verdict.
    Tagged,
    /// The flow has a rate that is never reached.
    WithinRate,
    /// The flow has a rate that nearly each packet is beyond.
    BeyondRate,
}

/// A program on one frame.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) load: Load,
    pub(crate) hook: Hook,
    pub(crate) frame: Vec<u8>,
    pub(crate) state: State,
    /// Runs before the first round.
    pub(crate) warm: u32,
}

/// Cases on frames of one kind.
pub(crate) struct Group {
    pub(crate) name: &'static str,
    /// What the others are held against; its first is the floor.
    pub(crate) references: Vec<Case>,
    pub(crate) cases: Vec<Case>,
}

/// Names of references that have columns of their own.
pub(crate) const FLOOR: &str = "parse and clock";
pub(crate) const LRU: &str = "LRU hash";
pub(crate) const AGGREGATE: &str = "aggregating agent";
pub(crate) const EMPTY: &str = "empty program";

/// Runs before the first round, for one flow.
const WARM: u32 = 2000;

fn case(name: &'static str, load: Load, hook: Hook, frame: Vec<u8>) -> Case {
    Case { name, load, hook, frame, state: State::Plain, warm: WARM }
}

/// Floor, LRU hash and aggregating agent on `frame`, and `cases` on it: (name, load).
fn group(name: &'static str, load: Load, frame: &[u8], warm: u32, cases: &[(&'static str, Load)]) -> Group {
    let reference = |name, floor| Case { warm, ..case(name, load, Hook::Floor(floor), frame.to_vec()) };
    Group {
        name,
        references: vec![
            reference(FLOOR, Floor::Clock),
            reference(LRU, Floor::Lru),
            reference(AGGREGATE, Floor::Aggregate),
        ],
        cases: cases
            .iter()
            .map(|(name, load)| Case { warm, ..case(name, *load, Hook::Ingress, frame.to_vec()) })
            .collect(),
    }
}

/// All groups; the first has the references that are common to all.
pub(crate) fn groups() -> Result<Vec<Group>> {
    let ours = [("established flow", Load::Large)];
    let mut groups = vec![
        one_flow()?,
        group("TCP over IPv6", Load::Large, &frames::tcp6()?, WARM, &ours),
        group("TCP in a VLAN", Load::Large, &frames::vlan()?, WARM, &ours),
        group("TCP under two VLAN tags (QinQ)", Load::Large, &frames::qinq()?, WARM, &ours),
        group("UDP over IPv4", Load::Large, &frames::udp(1000)?, WARM, &ours),
        group(
            "TCP over IPv4, tunnels read",
            Load::Tunnels,
            &frames::tcp(1000)?,
            WARM,
            &[("established flow", Load::Tunnels)],
        ),
        group("TCP in VXLAN, tunnels read", Load::Tunnels, &frames::vxlan()?, WARM, &[("inner flow", Load::Tunnels)]),
        group("TCP in VXLAN, tunnels not read", Load::Large, &frames::vxlan()?, WARM, &[("outer flow", Load::Large)]),
    ];
    let mut arp = group("not IP", Load::Large, &frames::arp()?, WARM, &[("counted by cause", Load::Large)]);
    // There is no flow.
    arp.references.truncate(1);
    groups.push(arp);
    groups.push(stack()?);
    // Flows of their own: those of another group would be ahead of these, and each packet late.
    for (bits, port, name) in [
        (10, 443, "acknowledgements of 1,024 flows at random"),
        (14, 444, "acknowledgements of 16,384 flows at random"),
        (16, 445, "acknowledgements of 65,536 flows at random"),
    ] {
        // A flow's first 16 frames are not what an established one costs.
        groups.push(group(name, Load::Large, &frames::crowd(bits, port)?, 20 << bits, &ours));
    }
    groups.push(flood()?);
    Ok(groups)
}

fn one_flow() -> Result<Group> {
    let frame = frames::tcp(1000)?;
    let mut group = group(
        "TCP over IPv4",
        Load::Large,
        &frame,
        WARM,
        &[
            ("established flow", Load::Large),
            ("… without host context", Load::NoContext),
            ("… program for single buffers", Load::Small),
        ],
    );
    for (name, floor) in
        [(EMPTY, Floor::Drop), ("a frame that changes, nothing read", Floor::Vary), ("parse", Floor::Parse)]
    {
        group.references.push(case(name, Load::Large, Hook::Floor(floor), frame.clone()));
    }
    let mut add = |name, state, frame| {
        group.cases.push(Case { state, ..case(name, Load::Large, Hook::Ingress, frame) });
    };
    add("the same segment again (long way)", State::Plain, frames::tcp_again(1001)?);
    add("dropped by verdict", State::Dropped, frames::tcp(2000)?);
    add("tagged by verdict, at XDP", State::Tagged, frames::tcp(2001)?);
    add("within its rate", State::WithinRate, frames::tcp(2002)?);
    add("beyond its rate, dropped", State::BeyondRate, frames::tcp(2003)?);
    Ok(group)
}

/// Programs at TC, which have a floor there.
fn stack() -> Result<Group> {
    let case = |name, hook, state, port| {
        Ok::<_, anyhow::Error>(Case { state, ..case(name, Load::Large, hook, frames::udp(port)?) })
    };
    Ok(Group {
        name: "UDP over IPv4, at TC",
        references: vec![
            case(FLOOR, Hook::Floor(Floor::StackClock), State::Plain, 3000)?,
            case(EMPTY, Hook::Floor(Floor::StackNext), State::Plain, 3000)?,
        ],
        cases: vec![
            case("ingress (no XDP), established flow", Hook::StackIngress, State::Plain, 3000)?,
            case("ingress (no XDP), dropped by verdict", Hook::StackIngress, State::Dropped, 3001)?,
            case("egress, established flow", Hook::Egress, State::Plain, 3002)?,
            case("tagging, flow without a verdict", Hook::Tag, State::Plain, 3000)?,
            case("tagging, tagged flow (mark)", Hook::Tag, State::Tagged, 3003)?,
        ],
    })
}

/// SYNs, each of another flow.
fn flood() -> Result<Group> {
    let frame = frames::flood("198.18.0.0", 32)?;
    let mut group = group("SYNs, each a new flow", Load::Flooded, &frame, 1 << 20, &[]);
    // A hash map that does not evict is full after the first of them.
    group.references.truncate(2);
    let mut add = |name, load, warm, network: &str, bits| {
        let frame = frames::flood(network, bits)?;
        group.cases.push(Case { warm, ..case(name, load, Hook::Ingress, frame) });
        Ok::<_, anyhow::Error>(())
    };
    add("table full of flows with history", Load::Small, 0, "198.18.0.0", 32)?;
    add("… without host context", Load::NoContext, 0, "198.18.0.0", 32)?;
    add("each evicts another", Load::Flooded, 1 << 20, "198.18.0.0", 32)?;
    add("from a blocked network", Load::Blocked, WARM, "198.18.0.0", 32)?;
    add("from one of 16,384 blocked prefixes", Load::Blocked, WARM, "198.19.0.0", 32)?;
    add("from one of 16,384 blocked addresses", Load::Addresses, WARM, "198.19.0.0", frames::ADDRESS_BITS)?;
    Ok(group)
}

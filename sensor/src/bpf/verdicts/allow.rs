//! The never-drop list as the programs see it: prefixes, ports, and single flows (entries of action pass).

use anyhow::Context as _;
use ipnet::IpNet;
use sensor_common::verdict::{ALLOWED_FLAG, Action, EPOCHS, PORT_WORDS, port_bit};

use super::Verdicts;
use super::sources::{prefix_key, prefix_of};

/// Of an entry, beside [`ALLOWED_FLAG`], for agents only: it was added by command …
const COMMAND_FLAG: u32 = 2;
/// … and the bits from here on are the minute of its end since 1970, 0 = none.
const END_SHIFT: u32 = 2;
const MINUTE_MS: u64 = 60_000;

impl Verdicts {
    /// Puts a prefix on the never-drop list: no packet to or from it is dropped or limited. At once: what was decided of a
    /// flow before is decided anew at its next packet.
    ///
    /// # Errors
    /// If the map is full ([`sensor_common::verdict::MAX_ALLOWED`]), or the kernel refuses.
    pub fn allow(&mut self, prefix: IpNet) -> anyhow::Result<()> {
        self.allowed.insert(&prefix_key(prefix), ALLOWED_FLAG, 0).context("writing map ALLOWED (full?)")?;
        self.move_on();
        Ok(())
    }

    /// As [`Verdicts::allow`], for an agent that takes over and does not know the entry: it was added by command, and ends
    /// at `until_unix_ms` (Unix time, ms; rounded up to a minute). The programs ask for neither.
    ///
    /// # Errors
    /// As [`Verdicts::allow`].
    pub fn allow_by_command(&mut self, prefix: IpNet, until_unix_ms: Option<u64>) -> anyhow::Result<()> {
        let minutes = until_unix_ms.map_or(0, |until| until.div_ceil(MINUTE_MS).min(u64::from(u32::MAX >> END_SHIFT)));
        let flags = ALLOWED_FLAG | COMMAND_FLAG | (minutes as u32) << END_SHIFT;
        self.allowed.insert(&prefix_key(prefix), flags, 0).context("writing map ALLOWED (full?)")?;
        self.move_on();
        Ok(())
    }

    /// Prefixes that were added by command, and when they end (Unix time, ms).
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn allowed_by_command(&self) -> anyhow::Result<Vec<(IpNet, Option<u64>)>> {
        let all = self.allowed.iter().map(|pair| pair.map(|(key, flags)| (prefix_of(&key), flags)));
        let all: Vec<_> = all.collect::<Result<_, _>>().context("reading map ALLOWED")?;
        let until = |flags: u32| Some(u64::from(flags >> END_SHIFT) * MINUTE_MS).filter(|until| *until != 0);
        let by_command = all.into_iter().filter(|(_, flags)| flags & COMMAND_FLAG != 0);
        Ok(by_command.map(|(prefix, flags)| (prefix, until(flags))).collect())
    }

    /// Takes exactly this prefix off the list; whether it was there.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn disallow(&mut self, prefix: IpNet) -> anyhow::Result<bool> {
        if !self.allowed()?.contains(&prefix.trunc()) {
            return Ok(false);
        }
        self.allowed.remove(&prefix_key(prefix)).context("writing map ALLOWED")?;
        self.move_on();
        Ok(true)
    }

    /// Prefixes on the list.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn allowed(&self) -> anyhow::Result<Vec<IpNet>> {
        let all = self.allowed.keys().map(|key| key.map(|key| prefix_of(&key)));
        all.collect::<Result<_, _>>().context("reading map ALLOWED")
    }

    /// Puts these ports on the list, and no others: packets to them that come in and from them that go out are never
    /// dropped. The other end's port gives no immunity.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_ports(&mut self, tcp: &[u16], udp: &[u16]) -> anyhow::Result<()> {
        let mut words = vec![0u64; PORT_WORDS as usize];
        for (ports, is_udp) in [(tcp, false), (udp, true)] {
            for port in ports {
                let (word, bit) = port_bit(*port, is_udp);
                words[word as usize] |= 1 << bit;
            }
        }
        for (number, word) in (0u32..).zip(words) {
            if self.ports.get(&number, 0).context("reading map ALLOWED_PORTS")? != word {
                self.ports.set(number, word, 0).context("writing map ALLOWED_PORTS")?;
            }
        }
        self.move_on();
        Ok(())
    }

    /// Ports on the list: TCP's and UDP's.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn ports(&self) -> anyhow::Result<[Vec<u16>; 2]> {
        let mut ports = [Vec::new(), Vec::new()];
        for number in 0..PORT_WORDS {
            let word = self.ports.get(&number, 0).context("reading map ALLOWED_PORTS")?;
            let first = number as usize % (PORT_WORDS as usize / 2) * 64;
            let set = (0..64).filter(|bit| word >> bit & 1 != 0).map(|bit| (first + bit) as u16);
            ports[usize::from(number >= PORT_WORDS / 2)].extend(set);
        }
        Ok(ports)
    }

    /// Flows that are never dropped.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn allowed_flows(&self) -> anyhow::Result<Vec<sensor_common::flow::FlowKey>> {
        let pass = |entry: &sensor_common::verdict::Entry| entry.action == Action::Pass as u8;
        Ok(self.flows()?.into_iter().filter(|(_, entry)| pass(entry)).map(|(key, _)| key).collect())
    }

    /// From now on, what programs remember of flows without protection is not believed.
    pub(super) fn move_on(&mut self) {
        // From the page: the agent before may have gone further.
        self.epoch = self.control.allow_epoch() % EPOCHS + 1;
        self.control.set_allow_epoch(self.epoch);
    }
}

//! Which eBPF object is loaded, and what only that one has: the agent's own, or that of benches, whose programs are the same but for
//! what benches ask of them. Called by [`super::load`].

use super::load::LoadOptions;

static AGENT: &[u8] = aya::include_bytes_aligned!(env!("SENSOR_EBPF_OBJECT_PATH"));

/// An object, and what is set in it beside what all objects have.
#[derive(Debug)]
pub(super) struct Object {
    /// The ELF file.
    pub(super) bytes: &'static [u8],
    /// Beginning of the names of maps that only this object has, and no agent.
    pub(super) own_maps: Option<&'static str>,
    /// Most entries of maps.
    pub(super) entries: Vec<(&'static str, u32)>,
    /// Constants.
    pub(super) globals: Vec<(&'static str, u8)>,
    /// Programs that are loaded beside the real ones.
    pub(super) programs: Vec<&'static str>,
}

impl Object {
    /// The one that the options ask for: the agent's own, but for benches.
    #[cfg_attr(not(feature = "bench"), expect(unused_variables, reason = "only benches ask for another"))]
    pub(super) fn of(options: &LoadOptions) -> Object {
        #[cfg(feature = "bench")]
        if let Some(bench) = options.bench {
            return super::bench::object(bench, options.flows);
        }
        Object { bytes: AGENT, own_maps: None, entries: Vec::new(), globals: Vec::new(), programs: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names in the table of symbols of an ELF file.
    fn names<'a>(object: &[u8], wanted: &[&'a str]) -> Vec<&'a str> {
        let is_there = |name: &&&str| object.windows(name.len()).any(|bytes| bytes == name.as_bytes());
        wanted.iter().filter(is_there).copied().collect()
    }

    #[test]
    fn what_benches_switch_is_not_in_the_agents_object() {
        let wanted = ["\0CUT\0", "\0VARY\0", "BENCH_", "floor_"];
        assert_eq!(names(AGENT, &wanted), [""; 0]);
        assert_eq!(names(AGENT, &["\0BUCKETS\0"]), ["\0BUCKETS\0"], "the table of symbols is there");
        #[cfg(feature = "bench")]
        {
            let bench = Some(crate::bpf::bench::Bench::default());
            let object = Object::of(&LoadOptions { bench, ..LoadOptions::default() });
            assert_eq!(names(object.bytes, &wanted), wanted);
        }
    }
}

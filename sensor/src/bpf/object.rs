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

//! Arguments of `sensor extract`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use sensor_common::packet::{GENEVE_PORTS, VXLAN_PORTS};

use crate::config::{FlowsConfig, Tunnel, check_ports};
use crate::replay::table::DEFAULT_MAX_FLOWS;
use crate::replay::{ExtractOptions, Format, View};

/// `sensor extract`.
#[derive(Debug, Args)]
pub(super) struct Extract {
    /// Capture files: pcap or pcapng, plain or compressed with gzip or zstd; - is standard input
    #[arg(required = true, value_name = "CAPTURE")]
    captures: Vec<PathBuf>,
    /// Where the rows go; the file must not exist yet [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
    /// Form of the rows [default: by the ending of the output: .csv, .parquet, .jsonl; else csv]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Columns of the rows, and when flows end; see docs/views.md
    #[arg(long, value_enum, default_value_t)]
    view: View,
    /// Also write each flow's row when it reaches these packet counts
    #[arg(long, value_delimiter = ',', value_name = "N,N…")]
    snapshots: Vec<u64>,
    /// CSV file that labels flows by capture, initiator's prefix and protocol; see models/README.md
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// A flow without packets for this long is over, as in 60s [default: that of the view]
    #[arg(long, value_name = "DUR", value_parser = humantime::parse_duration)]
    idle_timeout: Option<Duration>,
    /// An established TCP connection without packets for this long is over, as in 5days [default: that of the view]
    #[arg(long, value_name = "DUR", value_parser = humantime::parse_duration)]
    established_timeout: Option<Duration>,
    /// A flow that is this old is cut in two, as in 30min [default: that of the view]
    #[arg(long, value_name = "DUR", value_parser = humantime::parse_duration)]
    active_timeout: Option<Duration>,
    /// Flows that are held at once, about 1 kB each; for one more, the flow idle longest is ended
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_FLOWS)]
    max_flows: usize,
    /// Tunnels whose inner flows are counted in place of the outer one
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KIND,…")]
    tunnels: Vec<Tunnel>,
    /// UDP ports of VXLAN, up to four
    #[arg(long, value_delimiter = ',', value_name = "PORT,…", default_values_t = VXLAN_PORTS)]
    vxlan_ports: Vec<u16>,
    /// UDP ports of Geneve, up to four
    #[arg(long, value_delimiter = ',', value_name = "PORT,…", default_values_t = GENEVE_PORTS)]
    geneve_ports: Vec<u16>,
    /// Look at the first payload bytes, for the payload-hint features
    #[arg(long)]
    payload_hints: bool,
    /// Let the programs in the kernel count, by test runs: the same rows, a few times slower; needs root
    #[arg(long)]
    kernel: bool,
    /// No progress bar
    #[arg(short, long)]
    quiet: bool,
}

impl Extract {
    pub(super) fn options(self) -> Result<ExtractOptions> {
        let Extract {
            captures,
            output,
            force,
            format,
            view,
            snapshots,
            labels,
            idle_timeout,
            established_timeout,
            active_timeout,
            max_flows,
            tunnels,
            vxlan_ports,
            geneve_ports,
            payload_hints,
            kernel,
            quiet,
        } = self;
        check_ports(&vxlan_ports).with_context(|| format!("--vxlan-ports {vxlan_ports:?}"))?;
        check_ports(&geneve_ports).with_context(|| format!("--geneve-ports {geneve_ports:?}"))?;
        let flows = FlowsConfig { tunnels, vxlan_ports, geneve_ports, payload_hints };
        Ok(ExtractOptions {
            captures,
            output,
            force,
            format,
            view,
            snapshots,
            labels,
            idle_timeout,
            established_timeout,
            active_timeout,
            max_flows,
            parser: flows.parser_options(),
            kernel,
            progress: !quiet && std::io::stderr().is_terminal(),
        })
    }
}

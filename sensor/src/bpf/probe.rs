//! What this kernel and these interfaces can do, probed once by asking the kernel (not by its version, where it can be
//! asked). The loader chooses its path from [`Capabilities`], and `sensor doctor` prints them.
//!
//! Nothing is changed by probing: programs and maps are created and dropped, none is attached.

pub mod links;
mod netlink;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use aya::maps::MapType;
use aya::programs::{ProgramType, loaded_programs};
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};
use serde::Serialize;

/// Oldest kernel that Sensor promises to run on: the oldest that tests run on (tests/vm). Major and minor version.
pub const MIN_KERNEL: (u32, u32) = (6, 1);
/// Oldest kernel that has all that is used, by what its documentation says. Nothing was run on those from here to
/// [`MIN_KERNEL`].
pub const OLDEST_KERNEL: (u32, u32) = (5, 15);
/// Where the BPF file system is expected.
pub const BPF_FS: &str = "/sys/fs/bpf";
/// The user namespace of the host; its number is a constant of the kernel (PROC_USER_INIT_INO).
const INITIAL_USER_NAMESPACE: &str = "user:[4026531837]";
const BTF: &str = "/sys/kernel/btf/vmlinux";
const JIT: &str = "/proc/sys/net/core/bpf_jit_enable";

/// What the kernel offers, and what this process may do with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// `uname -r`.
    pub release: String,
    /// Major and minor of it.
    pub version: (u32, u32),
    /// `uname -m`.
    pub machine: String,
    /// What this process may do.
    pub privileges: Privileges,
    /// The kernel's own types can be read.
    pub btf: bool,
    /// State of the BPF just-in-time compiler; `None` if it cannot be read.
    pub jit: Option<bool>,
    /// The kernel answers floods of SYNs to this host by cookies, in this network namespace; `None` if it cannot be
    /// read.
    pub syn_cookies: Option<bool>,
    /// Programs of type XDP load.
    pub xdp: bool,
    /// Programs of type scheduler classifier load.
    pub classifier: bool,
    /// Arrays and ring buffers can be created.
    pub ring_buffer: bool,
    /// XDP programs can be loaded for frames of several buffers (jumbo frames, ≥ 5.18).
    pub xdp_frags: bool,
    /// Classifiers can be attached by link (≥ 6.6); else by a clsact qdisc.
    pub tcx: bool,
    /// A BPF file system is mounted at [`BPF_FS`].
    pub bpf_fs: bool,
}

/// Effective capabilities of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Privileges {
    /// Effective user id 0.
    pub root: bool,
    /// CAP_BPF.
    pub bpf: bool,
    /// CAP_NET_ADMIN.
    pub net_admin: bool,
    /// CAP_PERFMON.
    pub perfmon: bool,
    /// CAP_SYS_ADMIN, which stands for BPF and PERFMON.
    pub sys_admin: bool,
    /// In a user namespace, where the kernel counts none of these for loading programs.
    pub user_namespace: bool,
}

impl Privileges {
    /// Names of the capabilities that are missing for loading and attaching.
    pub fn missing(self) -> Vec<&'static str> {
        let Privileges { root: _, bpf, net_admin, perfmon, sys_admin, user_namespace } = self;
        let [bpf, net_admin, perfmon, sys_admin] =
            [bpf, net_admin, perfmon, sys_admin].map(|held| held && !user_namespace);
        [("CAP_BPF", bpf || sys_admin), ("CAP_NET_ADMIN", net_admin), ("CAP_PERFMON", perfmon || sys_admin)]
            .into_iter()
            .filter_map(|(name, held)| (!held).then_some(name))
            .collect()
    }

    fn from_mask(mask: u64, root: bool) -> Privileges {
        let has = |bit: u32| mask >> bit & 1 != 0;
        let (bpf, net_admin, perfmon, sys_admin) = (has(39), has(12), has(38), has(21));
        Privileges { root, bpf, net_admin, perfmon, sys_admin, user_namespace: false }
    }
}

/// An XDP program that is attached already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AttachedXdp {
    /// "native", "generic", "offloaded" or "several".
    pub mode: &'static str,
    /// Its id, where there is one.
    pub program_id: Option<u32>,
    /// Name of the program; `None` if it cannot be asked for.
    pub program: Option<String>,
}

/// What an interface offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InterfaceCapabilities {
    /// Name.
    pub name: String,
    /// Index.
    pub ifindex: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Name of the driver or kind of virtual link.
    pub driver: String,
    /// Kind of its frames (ARPHRD_*, linux/if_arp.h).
    pub frames: u16,
    /// Largest L3 length.
    pub mtu: u32,
    /// Receive queues.
    pub rx_queues: u32,
    /// Transmit queues.
    pub tx_queues: u32,
    /// Whether native XDP is expected to attach.
    pub native_xdp: bool,
    /// The driver hands frames of several buffers to XDP; `None` if the kernel does not say.
    pub native_frags: Option<bool>,
    /// Whether that comes from the driver (`netdev` features, ≥ 6.3), not from a list of known drivers.
    pub native_known: bool,
    /// The XDP program that is there already.
    pub xdp_attached: Option<AttachedXdp>,
    /// The driver takes VLAN tags off before XDP sees the frame; `None` if the kernel does not say.
    pub rx_vlan_offload: Option<bool>,
    /// Received packets are merged in hardware (LRO or GRO-HW); `None` if the kernel does not say.
    pub hardware_receive_offload: Option<bool>,
}

/// Probes the kernel. Never fails: what cannot be asked is taken as absent.
pub fn kernel() -> Capabilities {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let version = parse_release(&release);
    Capabilities {
        version,
        machine: uname.machine().to_string_lossy().into_owned(),
        privileges: privileges(),
        btf: Path::new(BTF).exists(),
        syn_cookies: crate::host::syn_cookies(),
        jit: fs::read_to_string(JIT).ok().map(|value| value.trim() != "0"),
        xdp: is_program_supported(ProgramType::Xdp).unwrap_or(false),
        classifier: is_program_supported(ProgramType::SchedClassifier).unwrap_or(false),
        ring_buffer: is_map_supported(MapType::RingBuf).unwrap_or(false),
        // The helper came with the frags themselves, in one series (v5.18, 0165cc817075).
        xdp_frags: is_helper_supported(ProgramType::Xdp, BpfHelper::BPF_FUNC_xdp_get_buff_len).unwrap_or(false),
        tcx: tcx(version),
        bpf_fs: is_bpf_fs(Path::new(BPF_FS)),
        release,
    }
}

/// Probes an interface.
///
/// # Errors
/// There is no interface of that name in this network namespace, or netlink does not answer.
pub fn interface(name: &str) -> Result<InterfaceCapabilities> {
    let link = netlink::link(name)
        .with_context(|| format!("cannot look the interface {name} up over netlink"))?
        .ok_or_else(|| anyhow!("there is no interface {name} here; `ip link` lists those of this network namespace"))?;
    let driver = driver(name, &link);
    let features = netlink::xdp_features(link.ifindex);
    let offloads = netlink::active_offloads(link.ifindex);
    let on = |names: &[&str]| offloads.as_ref().map(|active| names.iter().any(|n| active.iter().any(|a| a == n)));
    Ok(InterfaceCapabilities {
        name: name.to_owned(),
        ifindex: link.ifindex,
        up: link.up,
        frames: link.frames,
        mtu: link.mtu,
        rx_queues: link.rx_queues,
        tx_queues: link.tx_queues,
        native_xdp: features.map_or_else(|| NATIVE_DRIVERS.contains(&driver.as_str()), |bits| bits & XDP_BASIC != 0),
        native_frags: features.map(|bits| bits & XDP_RX_SG != 0),
        native_known: features.is_some(),
        xdp_attached: link.xdp.map(|(mode, program_id)| AttachedXdp {
            mode: ["none", "native", "generic", "offloaded"].get(mode as usize).copied().unwrap_or("several"),
            program_id,
            program: program_id.and_then(program_name),
        }),
        rx_vlan_offload: on(&["rx-vlan-hw-parse"]),
        hardware_receive_offload: on(&["rx-lro", "rx-gro-hw"]),
        driver,
    })
}

/// Name of a loaded program, as far as the kernel keeps it (15 bytes); `None` without the right to ask.
fn program_name(id: u32) -> Option<String> {
    let mut programs = loaded_programs().filter_map(Result::ok);
    let program = programs.find(|program| program.id() == id)?;
    program.name_as_str().map(str::to_owned)
}

/// Number of the XDP program on the interface of this number; `None` if it has none.
///
/// # Errors
/// ENODEV: there is no such interface; netlink does not answer.
pub(super) fn xdp_program(ifindex: u32) -> std::io::Result<Option<u32>> {
    netlink::xdp_program(ifindex)
}

/// Whether an interface is one end of a veth pair, as containers have them.
pub(super) fn is_veth(interface: &str) -> bool {
    netlink::link(interface).ok().flatten().is_some_and(|link| link.kind.as_deref() == Some("veth"))
}

/// Kind of an interface's frames (ARPHRD_*, linux/if_arp.h); `None` if there is none of that name. Asked over netlink:
/// /sys may be that of another network namespace.
///
/// # Errors
/// If netlink does not answer.
pub(super) fn frames(interface: &str) -> Result<Option<u16>> {
    let link =
        netlink::link(interface).with_context(|| format!("cannot ask for the kind of {interface} over netlink"))?;
    Ok(link.map(|link| link.frames))
}

/// Frames with an Ethernet header.
pub const ETHERNET: u16 = 1;
/// The loopback interface, whose frames have one, too.
pub const LOOPBACK: u16 = 772;

/// What interfaces with other frames are, for people (ARPHRD_*, linux/if_arp.h).
pub fn frames_name(frames: u16) -> &'static str {
    match frames {
        ETHERNET => "Ethernet",
        LOOPBACK => "loopback",
        32 => "InfiniBand",
        512 => "PPP",
        519 => "raw IP",
        768 => "IP-in-IP tunnel",
        769 => "IPv6 tunnel",
        776 => "6in4 tunnel (sit)",
        778 => "GRE tunnel",
        801..=803 => "802.11 monitor",
        823 => "GRE tunnel over IPv6",
        824 => "netlink monitor",
        65534 => "tun, WireGuard or another tunnel",
        _ => "another kind",
    }
}

/// The interface of the default route: IPv4's with the lowest metric, else IPv6's.
///
/// # Errors
/// There is no default route.
pub fn default_interface() -> Result<String> {
    let table = |path| fs::read_to_string(path).unwrap_or_default();
    default_route_v4(&table("/proc/thread-self/net/route"))
        .or_else(|| default_route_v6(&table("/proc/thread-self/net/ipv6_route")))
        .ok_or_else(|| {
            anyhow!("there is no default route to take the interface from; name one with -i or `interfaces`")
        })
}

/// `enum netdev_xdp_act`: the basic actions, and receiving into several buffers.
const XDP_BASIC: u64 = 1;
const XDP_RX_SG: u64 = 1 << 5;

/// Drivers with native XDP, for kernels before 6.3, which cannot be asked.
const NATIVE_DRIVERS: &[&str] = &[
    "atlantic",
    "bnxt_en",
    "bond",
    "cpsw",
    "dpaa2-eth",
    "ena",
    "enetc",
    "fsl_dpa",
    "gve",
    "hv_netvsc",
    "i40e",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "mana",
    "mlx4_en",
    "mlx5_core",
    "mvneta",
    "mvpp2",
    "netsec",
    "nfp",
    "nicvf",
    "qede",
    "sfc",
    "stmmac",
    "tsnep",
    "tun",
    "veth",
    "virtio_net",
    "xen-netfront",
];

fn driver(name: &str, link: &netlink::Link) -> String {
    let from_sys = || {
        // /sys may show another network namespace than ours: believe it only if it means the same link.
        let directory = Path::new("/sys/class/net").join(name);
        let index = fs::read_to_string(directory.join("ifindex")).ok()?;
        let target = fs::read_link(directory.join("device/driver")).ok()?;
        (index.trim().parse() == Ok(link.ifindex)).then(|| target.file_name()?.to_str().map(str::to_owned))?
    };
    let kind = || link.kind.clone().or_else(|| (link.ifindex == 1).then(|| "loopback".to_owned()));
    kind().or_else(from_sys).unwrap_or_else(|| "unknown".to_owned())
}

fn privileges() -> Privileges {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    let namespace = fs::read_link("/proc/self/ns/user").unwrap_or_default();
    // Where there is no such file, the kernel has no user namespaces.
    let user_namespace = !namespace.as_os_str().is_empty() && namespace != Path::new(INITIAL_USER_NAMESPACE);
    let held = Privileges::from_mask(mask.unwrap_or_default(), rustix::process::geteuid().is_root());
    Privileges { user_namespace, ..held }
}

/// TCX can only be tried by attaching, so its presence is read from the kernel's symbols; failing that, its version.
fn tcx(version: (u32, u32)) -> bool {
    const SYMBOL: &[u8] = b"\0tcx_link_attach\0";
    match fs::read(BTF) {
        Ok(types) => contains(&types, SYMBOL),
        Err(_) => version >= (6, 6),
    }
}

/// Whether `needle` is in `haystack`.
fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

pub(super) fn is_bpf_fs(path: &Path) -> bool {
    const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
    rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type as u64 & 0xffff_ffff == BPF_FS_MAGIC)
}

fn parse_release(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn default_route_v4(table: &str) -> Option<String> {
    const RTF_UP: u32 = 1;
    const RTF_REJECT: u32 = 0x200;
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let [name, destination, _gateway, flags, _, _, metric, mask, ..] = fields[..] else { return None };
            let flags = u32::from_str_radix(flags, 16).ok()?;
            let default = destination == "00000000" && mask == "00000000";
            (default && flags & (RTF_UP | RTF_REJECT) == RTF_UP).then(|| Some((metric.parse::<u32>().ok()?, name)))?
        })
        .min_by_key(|(metric, _)| *metric)
        .map(|(_, name)| name.to_owned())
}

fn default_route_v6(table: &str) -> Option<String> {
    table
        .lines()
        .filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let [destination, length, _, _, _, metric, _, _, _flags, name] = fields[..] else { return None };
            let default = length == "00" && destination.bytes().all(|byte| byte == b'0');
            // Every namespace has an unreachable default on its loopback.
            (default && name != "lo").then(|| Some((u32::from_str_radix(metric, 16).ok()?, name)))?
        })
        .min_by_key(|(metric, _)| *metric)
        .map(|(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        assert_eq!(parse_release("6.1.0-13-amd64"), (6, 1));
        assert_eq!(parse_release("5.15.167.4-microsoft-standard-WSL2"), (5, 15));
        assert_eq!(parse_release("6.12-rc3"), (6, 12));
        assert!(parse_release("?") < OLDEST_KERNEL);
    }

    #[test]
    fn capabilities_stand_for_one_another() {
        assert_eq!(Privileges::from_mask(0, false).missing(), ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]);
        assert_eq!(Privileges::from_mask(1 << 21 | 1 << 12, true).missing(), [""; 0]);
        let held = Privileges { user_namespace: true, ..Privileges::from_mask(u64::MAX, true) };
        assert_eq!(held.missing().len(), 3, "root of a user namespace");
        assert_eq!(Privileges::from_mask(1 << 39 | 1 << 12, false).missing(), ["CAP_PERFMON"]);
    }

    #[test]
    fn default_routes() {
        let v4 = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                  wlan0\t00000000\t010200C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
                  eth0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                  eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(default_route_v4(v4).as_deref(), Some("eth0"));
        assert_eq!(default_route_v4("Iface\n"), None);
        let zeros = "0".repeat(32);
        let line = |metric: &str, name: &str| {
            format!(
                "{zeros} 00 {zeros} 00 fe800000000000000000000000000001 {metric} 00000001 00000000 00000003 {name}\n"
            )
        };
        let v6 = line("ffffffff", "lo") + &line("00000400", "eth1") + &line("00000064", "eth2");
        assert_eq!(default_route_v6(&v6).as_deref(), Some("eth2"));
    }

    #[test]
    fn this_machine_answers() {
        let found = kernel();
        assert!(found.version > (2, 6), "{found:?}");
        let loopback = interface("lo").expect("every namespace has one");
        assert_eq!((loopback.driver.as_str(), loopback.native_xdp), ("loopback", false), "{loopback:?}");
        let error = interface("no-such-link0").expect_err("absent").to_string();
        assert!(error.contains("no-such-link0"), "{error}");
    }
}

//! Which programs an interface has at TC's hooks, by their numbers. aya can ask, too, but then opens each program,
//! which takes CAP_SYS_ADMIN; the numbers take CAP_NET_ADMIN.

use std::io;

/// `enum bpf_cmd` and `enum bpf_attach_type` (linux/bpf.h, TCX came with kernel 6.6, e420bed02507).
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
/// Most programs at one hook (BPF_MPROG_MAX, include/linux/bpf_mprog.h).
const MOST: usize = 64;

/// The part of `union bpf_attr` for BPF_PROG_QUERY.
#[derive(Clone, Copy, bytemuck::Zeroable)]
#[repr(C)]
struct Query {
    ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    reserved: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

/// Numbers of the programs at TC's ingress or egress (TCX) of an interface, in their order.
///
/// # Errors
/// ENODEV: there is no such interface; EINVAL: the kernel has no TCX (before 6.6); EPERM.
pub(in crate::bpf) fn tcx_programs(ifindex: u32, ingress: bool) -> io::Result<Vec<u32>> {
    let mut programs = [0u32; MOST];
    let mut query = Query {
        ifindex,
        attach_type: if ingress { BPF_TCX_INGRESS } else { BPF_TCX_EGRESS },
        programs: programs.as_mut_ptr() as u64,
        count: MOST as u32,
        ..bytemuck::Zeroable::zeroed()
    };
    // SAFETY: the kernel reads and writes `query`, of the size given, and writes at most `count` numbers to `programs`;
    // both live until the call is over.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(programs[..(query.count as usize).min(MOST)].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_is_said_to_be_gone() {
        let error = tcx_programs(0x7fff_fff0, true).expect_err("no interface has this number");
        // Without TCX, or the right to ask, the kernel does not look for it.
        assert!(matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EINVAL | libc::EPERM)), "{error}");
    }
}

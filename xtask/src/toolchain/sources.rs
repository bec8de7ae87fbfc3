//! Where compilers and linkers come from, and in which order.

use anyhow::Result;

use super::{Compiler, Machine, compiler, linker};

/// One way to a toolchain: all of its steps, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) steps: Vec<Step>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Download the lists of Debian packages.
    RefreshLists,
    /// Install Debian packages.
    Apt(Vec<String>),
    /// Download the pinned compiler with rust-src from Rust's own server, into target/tools.
    Rustup,
    /// Compile bpf-linker against an LLVM that is installed.
    CompileLinker {
        /// Major version of the LLVM.
        llvm: u32,
    },
    /// Download bpf-linker's own release.
    DownloadLinker,
}

impl Attempt {
    /// In words, for the plan.
    pub(crate) fn describe(&self) -> String {
        self.steps.iter().map(Step::describe).collect::<Vec<_>>().join(", then ")
    }

    /// Whether it needs root.
    #[cfg(test)]
    pub(super) fn needs_root(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::RefreshLists | Step::Apt(_)))
    }
}

impl Step {
    fn describe(&self) -> String {
        match self {
            Self::RefreshLists => "fresh lists of Debian packages".to_owned(),
            Self::Apt(packages) => format!("Debian packages {}", packages.join(" ")),
            Self::Rustup => format!("rustc {} with rust-src by rustup, in target/tools only", compiler::PINNED),
            Self::CompileLinker { llvm } => {
                format!("bpf-linker {} compiled in target/tools against LLVM {llvm} (1 to 2 minutes)", linker::PINNED)
            }
            Self::DownloadLinker => format!("the bpf-linker {} of its own release on github.com", linker::PINNED),
        }
    }
}

/// What would get a toolchain, best first.
///
/// A compiler that is there is kept if a linker for it can be had. As root, Debian's packages come before rustup's
/// download: the linker needs Debian's LLVM in any case.
///
/// # Errors
/// When `SENSOR_BPF_RUSTC` names a compiler that cannot be used.
pub(super) fn plan(machine: &impl Machine) -> Result<Vec<Attempt>> {
    let present = compiler::by_preference(machine.compilers()?);
    let mut plan = Vec::new();
    let mut compilers: Vec<(Vec<Step>, u32)> = Vec::new();
    compilers.extend(present.first().filter(|first| first.is_chosen()).map(|first| (Vec::new(), first.llvm_major)));
    if compilers.is_empty() {
        compilers.extend(pinned_first(&present));
        let debian = debian(machine);
        let rustup = machine.has("rustup").then(|| (vec![Step::Rustup], compiler::PINNED_LLVM));
        let pinned_is_here = present.iter().any(Compiler::is_pinned);
        compilers.extend([debian, rustup].into_iter().flatten().filter(|_| !pinned_is_here));
        compilers.extend(present.iter().filter(|one| !one.is_pinned()).map(|one| (Vec::new(), one.llvm_major)));
    }
    for (steps, llvm) in compilers {
        for more in linkers(machine, llvm) {
            let attempt = Attempt { steps: merged([steps.clone(), more].concat()) };
            if !plan.contains(&attempt) {
                plan.push(attempt);
            }
        }
    }
    Ok(plan)
}

fn pinned_first(present: &[Compiler]) -> Option<(Vec<Step>, u32)> {
    present.iter().find(|one| one.is_pinned()).map(|one| (Vec::new(), one.llvm_major))
}

/// Debian's compiler, if this user can install it. Where the lists have none that is new enough they may be old: with
/// fresh ones the packages are tried all the same.
fn debian(machine: &impl Machine) -> Option<(Vec<Step>, u32)> {
    if !machine.is_root() || !machine.has("apt-get") {
        return None;
    }
    let mut steps = Vec::new();
    if machine.candidate(compiler::DEBIAN[0]).is_none_or(|version| version < compiler::MIN_VERSION) {
        steps.push(Step::RefreshLists);
    }
    steps.push(Step::Apt(compiler::DEBIAN.map(str::to_owned).into()));
    Some((steps, compiler::PINNED_LLVM))
}

/// The ways to a linker for bitcode of LLVM `wanted`: LLVM reads older bitcode, never newer. The first is to need none,
/// as one may be there for another compiler.
fn linkers(machine: &impl Machine, wanted: u32) -> Vec<Vec<Step>> {
    let fitting = || linker::LLVM_FEATURES.filter(move |&major| major >= wanted);
    let mut ways = Vec::new();
    ways.extend(fitting().filter(|&llvm| machine.has_llvm(llvm)).map(|llvm| vec![Step::CompileLinker { llvm }]));
    if machine.is_root() && machine.has("apt-get") {
        let missing = || fitting().filter(|&llvm| !machine.has_llvm(llvm));
        let package = |llvm: u32| format!("llvm-{llvm}-dev");
        let known: Vec<u32> = missing().filter(|&llvm| machine.candidate(&package(llvm)).is_some()).collect();
        let install = |llvm: u32| [Step::Apt(vec![package(llvm)]), Step::CompileLinker { llvm }];
        ways.extend(known.iter().map(|&llvm| install(llvm).to_vec()));
        if known.is_empty() {
            // The lists may be older than the package.
            ways.extend(missing().take(1).map(|llvm| [&[Step::RefreshLists][..], &install(llvm)].concat()));
        }
    }
    if machine.has("curl") {
        ways.push(vec![Step::DownloadLinker]);
    }
    ways
}

/// Lists are refreshed once, and first; packages are installed in one go.
fn merged(steps: Vec<Step>) -> Vec<Step> {
    let refresh = steps.contains(&Step::RefreshLists).then_some(Step::RefreshLists);
    let mut packages = Vec::new();
    let mut rest = Vec::new();
    for step in steps {
        match step {
            Step::RefreshLists => {}
            Step::Apt(more) => packages.extend(more),
            Step::Rustup | Step::CompileLinker { .. } | Step::DownloadLinker => rest.push(step),
        }
    }
    let apt = (!packages.is_empty()).then_some(Step::Apt(packages));
    refresh.into_iter().chain(apt).chain(rest).collect()
}

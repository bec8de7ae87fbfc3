//! Machines that are not this one: what is decided on them, and what is left when sources fail.

use std::{cell::RefCell, collections::BTreeSet};

use super::{compiler::Origin, *};

/// Root's Debian with rustup's stable, as it is delivered, with fresh lists; tests change that.
struct Simulated {
    root: bool,
    programs: BTreeSet<&'static str>,
    compilers: Vec<Compiler>,
    linkers: Vec<Linker>,
    llvm: BTreeSet<u32>,
    /// What the lists say of rustc-web and of llvm-22-dev.
    candidates: (Option<(u32, u32)>, bool),
    /// What fresh lists say.
    fresh: (Option<(u32, u32)>, bool),
    /// Whether Debian's registry, rustup's, crates.io and github.com answer.
    reachable: [bool; 4],
    done: Vec<Step>,
    probed: RefCell<usize>,
}

const DEBIAN: usize = 0;
const RUST: usize = 1;
const CRATES: usize = 2;
const GITHUB: usize = 3;

impl Simulated {
    fn debian() -> Simulated {
        Simulated {
            root: true,
            programs: ["apt-get", "rustup", "curl"].into(),
            compilers: Vec::new(),
            linkers: Vec::new(),
            llvm: BTreeSet::new(),
            candidates: (Some((1, 96)), true),
            fresh: (Some((1, 96)), true),
            reachable: [true; 4],
            done: Vec::new(),
            probed: RefCell::new(0),
        }
    }

    /// An ordinary user with rustup, on a distribution without Debian's packages.
    fn user() -> Simulated {
        Simulated { root: false, programs: ["rustup", "curl"].into(), candidates: (None, false), ..Simulated::debian() }
    }

    fn obtain(&mut self) -> Result<Toolchain> {
        let plan = plan(self)?;
        obtain(self, &plan)
    }
}

impl Machine for Simulated {
    fn is_root(&self) -> bool {
        self.root
    }
    fn has(&self, program: &str) -> bool {
        self.programs.contains(program)
    }
    fn compilers(&self) -> Result<Vec<Compiler>> {
        Ok(self.compilers.clone())
    }
    fn linkers(&self) -> Vec<Linker> {
        self.linkers.clone()
    }
    fn links(&self, compiler: &Compiler, linker: &Linker) -> bool {
        *self.probed.borrow_mut() += 1;
        // LLVM reads older bitcode, never newer. The release's own linker holds LLVM 23.
        linker.test_llvm() >= compiler.llvm_major
    }
    fn has_llvm(&self, major: u32) -> bool {
        self.llvm.contains(&major)
    }
    fn candidate(&self, package: &str) -> Option<(u32, u32)> {
        match package {
            "rustc-web" => self.candidates.0,
            "llvm-22-dev" => self.candidates.1.then_some((22, 1)),
            _ => None,
        }
    }
    fn perform(&mut self, step: &Step) -> Result<()> {
        self.done.push(step.clone());
        let needs = match step {
            Step::RefreshLists | Step::Apt(_) => DEBIAN,
            Step::Rustup => RUST,
            Step::CompileLinker { .. } => CRATES,
            Step::DownloadLinker => GITHUB,
        };
        anyhow::ensure!(self.reachable[needs], "the network is unreachable");
        match step {
            Step::RefreshLists => self.candidates = self.fresh,
            Step::Apt(packages) => {
                for package in packages {
                    match package.as_str() {
                        "rustc-web" => {
                            let Some((major, minor)) = self.candidates.0 else { bail!("no package rustc-web") };
                            let release = format!("{major}.{minor}.0");
                            // A compiler that is too old is not one of those that count.
                            if (major, minor) >= compiler::MIN_VERSION {
                                self.compilers.push(Compiler::test(&release, "2026-05-25", 22, Origin::System));
                            }
                        }
                        "llvm-22-dev" => {
                            anyhow::ensure!(self.candidates.1, "no package llvm-22-dev");
                            self.llvm.insert(22);
                        }
                        _ => {}
                    }
                }
            }
            Step::Rustup => self.compilers.push(Compiler::test(compiler::PINNED, "2026-05-25", 22, Origin::Rustup)),
            Step::CompileLinker { llvm } => self.linkers.insert(0, Linker::test(Some(*llvm))),
            Step::DownloadLinker => self.linkers.insert(0, Linker::test(None)),
        }
        Ok(())
    }
}

fn nightly(release: &str, llvm: u32) -> Compiler {
    Compiler::test(release, "2026-11-20", llvm, Origin::Rustup)
}

#[test]
fn roots_debian_takes_its_own_packages_in_one_go() {
    let mut machine = Simulated::debian();
    assert!(machine.obtain().unwrap().is_pinned());
    let packages = ["rustc-web", "cargo-web", "rust-web-src", "llvm-22-dev"].map(str::to_owned);
    assert_eq!(machine.done, [Step::Apt(packages.into()), Step::CompileLinker { llvm: 22 }]);
}

#[test]
fn stale_lists_are_refreshed_before_a_package_is_believed_to_be_too_old() {
    let mut machine = Simulated { candidates: (Some((1, 85)), false), ..Simulated::debian() };
    assert!(machine.obtain().unwrap().is_pinned());
    assert_eq!(machine.done[0], Step::RefreshLists);
    assert_eq!(machine.done.iter().filter(|step| **step == Step::RefreshLists).count(), 1);
}

#[test]
fn without_rustup_debian_serves() {
    let mut machine = Simulated::debian();
    machine.programs.remove("rustup");
    assert!(machine.obtain().unwrap().is_pinned());
}

#[test]
fn with_no_registry_but_debians_and_crates_io_the_rest_is_not_waited_for() {
    let mut machine = Simulated::debian();
    machine.reachable[RUST] = false;
    machine.reachable[GITHUB] = false;
    assert!(machine.obtain().unwrap().is_pinned());
    assert!(!machine.done.contains(&Step::Rustup) && !machine.done.contains(&Step::DownloadLinker));
}

#[test]
fn where_debian_has_no_compiler_that_is_new_enough_rustup_is_next() {
    let too_old = (Some((1, 85)), true);
    let mut machine = Simulated { candidates: too_old, fresh: too_old, ..Simulated::debian() };
    assert!(machine.obtain().unwrap().is_pinned());
    assert!(machine.done.contains(&Step::Rustup));
}

#[test]
fn an_older_nightly_is_left_alone_and_a_newer_one_that_nothing_can_link_is_not_believed() {
    for (release, llvm) in [("1.95.0-nightly", 21), ("1.101.0-nightly", 23)] {
        for mut machine in [Simulated::debian(), Simulated::user()] {
            machine.compilers.push(nightly(release, llvm));
            machine.linkers.push(Linker::test(Some(22)));
            let found = find(&machine).unwrap();
            assert_eq!(found.is_some(), llvm <= 22, "a pair that links is one");
            let got = machine.obtain().unwrap();
            assert_eq!(got.compiler.release, compiler::PINNED, "{release}");
            let touched = machine.done.iter().any(|step| format!("{step:?}").contains("nightly"));
            assert!(!touched && machine.compilers[0].release == release);
        }
    }
}

#[test]
fn an_ordinary_user_needs_no_root() {
    let mut machine = Simulated::user();
    assert_eq!(machine.obtain().unwrap().compiler.release, compiler::PINNED);
    assert_eq!(machine.done, [Step::Rustup, Step::DownloadLinker]);
    let mut machine = Simulated { llvm: [22].into(), ..Simulated::user() };
    assert!(machine.obtain().unwrap().is_pinned());
    assert_eq!(machine.done, [Step::Rustup, Step::CompileLinker { llvm: 22 }]);
    assert!(plan(&machine).unwrap().iter().all(|attempt| !attempt.needs_root()));
}

#[test]
fn each_source_may_fail_and_the_next_is_taken() {
    // crates.io fails: the linker's own release is next.
    let mut machine = Simulated::debian();
    machine.reachable[CRATES] = false;
    assert_eq!(machine.obtain().unwrap().compiler.release, compiler::PINNED);
    assert_eq!(machine.done.last(), Some(&Step::DownloadLinker));
    // Debian fails, too: rustup's compiler with it.
    let mut machine = Simulated::debian();
    machine.reachable[DEBIAN] = false;
    assert_eq!(machine.obtain().unwrap().compiler.release, compiler::PINNED);
    assert!(machine.done.contains(&Step::Rustup) && machine.done.contains(&Step::DownloadLinker));
}

#[test]
fn without_any_network_each_attempt_says_what_failed_and_the_way_out_is_named() {
    let mut machine = Simulated { reachable: [false; 4], ..Simulated::debian() };
    let plan = plan(&machine).unwrap();
    let text = format!("{:#}", obtain(&mut machine, &plan).unwrap_err());
    assert_eq!(text.matches("the network is unreachable").count(), plan.len());
    assert!(text.contains("restore sensor-ebpf/") && text.contains("apt-get update"), "{text}");
    let mut machine = Simulated { programs: BTreeSet::new(), ..Simulated::user() };
    let text = format!("{:#}", machine.obtain().unwrap_err());
    assert!(text.contains("there is nothing to try"), "{text}");
}

#[test]
fn what_is_printed_is_what_is_tried() {
    let mut machine = Simulated { reachable: [false; 4], ..Simulated::debian() };
    let plan = plan(&machine).unwrap();
    assert!(obtain(&mut machine, &plan).is_err());
    let firsts: Vec<Step> = plan.iter().map(|attempt| attempt.steps[0].clone()).collect();
    assert_eq!(machine.done, firsts, "each attempt, up to the step that fails");
}

#[test]
fn an_explicit_compiler_is_never_replaced() {
    let mut machine = Simulated::debian();
    machine.compilers.push(Compiler::test("1.95.0", "2026-04-14", 22, Origin::Explicit));
    assert_eq!(machine.obtain().unwrap().compiler.release, "1.95.0");
    assert!(machine.done.iter().all(|step| !matches!(step, Step::Apt(packages) if packages[0] == "rustc-web")));
}

#[test]
fn a_pair_that_works_is_found_without_doing_anything() {
    let mut machine = Simulated::debian();
    machine.compilers.push(Compiler::test(compiler::PINNED, "2026-05-25", 22, Origin::System));
    machine.linkers.push(Linker::test(Some(22)));
    assert!(find(&machine).unwrap().unwrap().is_pinned());
    assert_eq!((machine.done.len(), *machine.probed.borrow()), (0, 1));
}

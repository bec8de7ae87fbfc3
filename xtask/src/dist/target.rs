//! The architectures that are shipped, by the names that each tool has for them.

use clap::ValueEnum;

/// An architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arch {
    /// x86-64, baseline
    #[value(name = "x86_64", alias = "amd64")]
    X86_64,
    /// 64-bit Arm, baseline
    #[value(name = "aarch64", alias = "arm64")]
    Aarch64,
}

impl Arch {
    /// All, in the order in which they are built.
    pub(super) const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];

    /// That of this machine, where it is one that is shipped.
    pub(super) fn host() -> Option<Self> {
        Self::ALL.into_iter().find(|arch| arch.kernel() == std::env::consts::ARCH)
    }

    /// Rust's name of the static target.
    pub(super) fn triple(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-linux-musl",
            Self::Aarch64 => "aarch64-unknown-linux-musl",
        }
    }

    /// The kernel's name, which rpm and apk use as well.
    pub(crate) fn kernel(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// Go's name, which nfpm and OCI use; Debian has the same.
    pub(crate) fn go(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }
}

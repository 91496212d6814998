//! The filter we want, as plain data: what a profile comes down to for one container.

/// An architecture whose system calls a filter can judge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arch {
    /// x86-64.
    X86_64,
    /// 32-bit x86, which a 64-bit kernel runs too.
    X86,
    /// x86-64 with 32-bit pointers: the audit architecture of x86-64, and bit 30 in each number.
    X32,
    /// 64-bit Arm.
    Aarch64,
    /// 32-bit Arm (EABI).
    Arm,
}

impl Arch {
    /// All there are.
    pub const ALL: [Arch; 5] = [Arch::X86_64, Arch::X86, Arch::X32, Arch::Aarch64, Arch::Arm];

    /// The architecture this program was compiled for, if it is one of ours.
    pub const NATIVE: Option<Arch> = if cfg!(target_arch = "x86_64") {
        Some(Arch::X86_64)
    } else if cfg!(target_arch = "aarch64") {
        Some(Arch::Aarch64)
    } else {
        None
    };

    /// `seccomp_data.arch` of its calls (`AUDIT_ARCH_*` of `linux/audit.h`).
    pub fn audit(self) -> u32 {
        match self {
            Arch::X86_64 | Arch::X32 => 0xc000_003e,
            Arch::X86 => 0x4000_0003,
            Arch::Aarch64 => 0xc000_00b7,
            Arch::Arm => 0x4000_0028,
        }
    }

    /// Whether conditions compare all 64 bits of an argument. The 32-bit ABIs (x32 among them, as
    /// libseccomp has it) compare the lower half with the lower half of the value.
    pub(super) fn is_wide(self) -> bool {
        match self {
            Arch::X86_64 | Arch::Aarch64 => true,
            Arch::X86 | Arch::X32 | Arch::Arm => false,
        }
    }

    /// Whether a kernel whose own architecture is `native` can run calls of this one.
    pub fn runs_on(self, native: Arch) -> bool {
        match native {
            Arch::X86_64 | Arch::X32 => matches!(self, Arch::X86_64 | Arch::X86 | Arch::X32),
            Arch::Aarch64 => matches!(self, Arch::Aarch64 | Arch::Arm),
            Arch::X86 | Arch::Arm => self == native,
        }
    }
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The thread ends as if by SIGSYS.
    KillThread,
    /// The process ends as if by SIGSYS.
    KillProcess,
    /// The thread gets a SIGSYS it can handle.
    Trap,
    /// The call fails with this errno (0 to 4095; 0 makes it a success that does nothing).
    Errno(u16),
    /// A tracer decides, and is given this number.
    Trace(u16),
    /// The call is made.
    Allow,
    /// The call is made and logged.
    Log,
    /// A process that holds the notification descriptor decides.
    Notify,
}

impl Action {
    /// The filter's return value (`SECCOMP_RET_*` of `linux/seccomp.h`).
    pub fn return_value(self) -> u32 {
        match self {
            Action::KillProcess => 0x8000_0000,
            Action::KillThread => 0,
            Action::Trap => 0x0003_0000,
            Action::Errno(errno) => 0x0005_0000 | u32::from(errno),
            Action::Notify => 0x7fc0_0000,
            Action::Trace(message) => 0x7ff0_0000 | u32::from(message),
            Action::Log => 0x7ffc_0000,
            Action::Allow => 0x7fff_0000,
        }
    }

    /// Whether the kernel holds this action stricter than the other: it compares return values
    /// as signed numbers, without their data.
    pub(super) fn is_stricter_than(self, other: Action) -> bool {
        let rank = |action: Action| (action.return_value() & 0xffff_0000).cast_signed();
        rank(self) < rank(other)
    }
}

/// How an argument is compared. The numbers are unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    /// Argument != value.
    NotEqual,
    /// Argument < value.
    Less,
    /// Argument <= value.
    LessEqual,
    /// Argument == value.
    Equal,
    /// Argument >= value.
    GreaterEqual,
    /// Argument > value.
    Greater,
    /// Argument & value == value_two & value.
    MaskedEqual,
}

/// One comparison of one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Condition {
    /// Which argument, 0 to 5.
    pub index: u8,
    /// The comparison.
    pub operator: Operator,
    /// What it is compared with; the mask of [`Operator::MaskedEqual`].
    pub value: u64,
    /// The value under the mask of [`Operator::MaskedEqual`]; not looked at otherwise.
    pub value_two: u64,
}

/// An action for some calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Names of the calls. An architecture that lacks one skips it.
    pub names: Vec<String>,
    /// What happens to them.
    pub action: Action,
    /// All must hold; none at all means always.
    pub conditions: Vec<Condition>,
}

/// What [`compile`](super::compile()) makes a program of. The module's own page says which of
/// several rules for one call decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// For calls that no rule decides.
    pub default_action: Action,
    /// For calls of an architecture that is not in `arches`.
    pub bad_arch_action: Action,
    /// For calls with a higher number than any that a rule names: newer than the profile, so a
    /// program should hear "no such call" and use another. None leaves them to the default.
    pub newer_action: Option<Action>,
    /// The architectures, the native one first.
    pub arches: Vec<Arch>,
    /// The rules, in the profile's order.
    pub rules: Vec<Rule>,
    /// `SECCOMP_FILTER_FLAG_*` bits for seccomp(2).
    pub flags: u32,
}

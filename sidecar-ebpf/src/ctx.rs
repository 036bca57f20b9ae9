//! Reading the kernel's context structures: one full 32-bit word at a time (narrower reads are
//! refused by some stable kernels), volatile so that the compiler neither merges nor splits them.

/// Reads one field of a context structure.
#[macro_export]
macro_rules! read {
    ($pointer:expr, $($field:tt)+) => {{
        // SAFETY: a field of the kernel's context, valid while the program runs.
        unsafe { core::ptr::read_volatile(&raw const (*$pointer).$($field)+) }
    }};
}
pub use read;

/// Writes one 32-bit field, or element of a field, of a context structure, given by its type. As
/// one instruction: of two writes to the same field the compiler makes one to an address that it
/// has computed before, which the verifier refuses.
macro_rules! write {
    ($pointer:expr, $type:ident.$field:ident = $value:expr) => {
        write!(@ $pointer, core::mem::offset_of!($type, $field), $value)
    };
    ($pointer:expr, $type:ident.$field:ident[$index:literal] = $value:expr) => {
        write!(@ $pointer, core::mem::offset_of!($type, $field) + 4 * $index, $value)
    };
    (@ $pointer:expr, $offset:expr, $value:expr) => {
        // SAFETY: a writable field of the kernel's context, valid while the program runs.
        unsafe {
            core::arch::asm!(
                "*(u32 *)({context} + {offset}) = {value}",
                context = in(reg) $pointer,
                offset = const $offset,
                value = in(reg) u64::from($value),
                options(nostack),
            );
        }
    };
}
pub(crate) use write;

/// Reads an address from its v4 and v6 fields. Both are read, whatever the family is: of two
/// branches with one load each the compiler makes one load at a computed offset, which the
/// verifier refuses.
macro_rules! read_addr {
    ($pointer:expr, $family:expr, $v4:ident, $v6:ident) => {{
        let v4 = read!($pointer, $v4);
        let v6 = [
            read!($pointer, $v6[0]),
            read!($pointer, $v6[1]),
            read!($pointer, $v6[2]),
            read!($pointer, $v6[3]),
        ];
        if $family == $crate::ctx::AF_INET {
            sidecar_common::Addr::from_v4(v4)
        } else {
            sidecar_common::Addr::from_v6(v6)
        }
    }};
}
pub(crate) use read_addr;

/// `AF_INET` as the contexts' `family` fields have it.
pub const AF_INET: u32 = 2;
/// `AF_INET6`.
pub const AF_INET6: u32 = 10;

//! The layout of a struct as a number: FNV-1a over the names, offsets and types of its fields, nested ones included, at compile
//! time. Used by [`super`], and beside structs whose fields are private.

/// A type whose layout is known as a number.
pub trait Layout {
    /// It, with the layouts of all it consists of.
    const HASH: u64;
}

/// Offset basis of FNV-1a, 64 bits (Fowler, Noll, Vo; RFC 9923).
pub(super) const START: u64 = 0xcbf2_9ce4_8422_2325;

const fn byte(hash: u64, byte: u8) -> u64 {
    (hash ^ byte as u64).wrapping_mul(0x100_0000_01b3)
}

pub(super) const fn word(mut hash: u64, word: u64) -> u64 {
    let mut shift = 0;
    while shift < 64 {
        hash = byte(hash, (word >> shift) as u8);
        shift += 8;
    }
    hash
}

pub(super) const fn text(mut hash: u64, text: &str) -> u64 {
    let mut position = 0;
    while position < text.len() {
        hash = byte(hash, text.as_bytes()[position]);
        position += 1;
    }
    word(hash, text.len() as u64)
}

/// The layout of a field's type, which is inferred from the way to the field.
#[doc(hidden)]
pub const fn layout_of<S, T: Layout>(_: fn(&S) -> &T) -> u64 {
    T::HASH
}

/// One field more.
#[doc(hidden)]
pub const fn field(hash: u64, name: &str, offset: usize, layout: u64) -> u64 {
    word(word(text(hash, name), offset as u64), layout)
}

/// A struct without fields yet.
#[doc(hidden)]
pub const fn structure(name: &str, size: usize, align: usize) -> u64 {
    word(word(text(START, name), size as u64), align as u64)
}

macro_rules! primitives {
    ($($type:ident)*) => { $(impl Layout for $type { const HASH: u64 = text(START, stringify!($type)); })* };
}
primitives!(u8 u16 u32 u64);

impl<T: Layout, const N: usize> Layout for [T; N] {
    const HASH: u64 = word(word(T::HASH, N as u64), size_of::<T>() as u64);
}

/// Describes a struct by naming all its fields. Where they are private, it is called beside the struct.
macro_rules! layout {
    ($type:ident { $($field:ident),* $(,)? }) => {
        impl $crate::schema::layout::Layout for $type {
            const HASH: u64 = {
                // Without `..`, so that a field that is added is not forgotten here.
                const fn _all_fields_are_named(value: &$type) {
                    let $type { $($field: _),* } = value;
                }
                let hash = $crate::schema::layout::structure(stringify!($type), size_of::<$type>(), align_of::<$type>());
                $(let hash = $crate::schema::layout::field(
                    hash,
                    stringify!($field),
                    core::mem::offset_of!($type, $field),
                    $crate::schema::layout::layout_of(|value: &$type| &value.$field),
                );)*
                hash
            };
        }
    };
}
pub(crate) use layout;

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! nested {
        ($module:ident: $first:ident, $second:ident) => {
            mod $module {
                #[repr(C)]
                pub(super) struct Inner {
                    pub(super) $first: u16,
                    pub(super) $second: u16,
                }
                layout!(Inner { $first, $second });
                pub(super) struct Outer {
                    pub(super) inner: [Inner; 2],
                }
                layout!(Outer { inner });
            }
        };
    }
    nested!(one: first, second);
    nested!(other: second, first);

    #[test]
    fn a_change_deep_inside_changes_the_layout() {
        assert_eq!(size_of::<one::Outer>(), size_of::<other::Outer>());
        assert_ne!(one::Outer::HASH, other::Outer::HASH, "two fields of one size changed places");
        assert_ne!(<[u32; 2]>::HASH, <[u32; 3]>::HASH);
        assert_ne!(<[u32; 2]>::HASH, <[u16; 4]>::HASH);
    }
}

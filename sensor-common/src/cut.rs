//! Where `cargo xtask bench profile` cuts the way of a packet short, to see what each part of it costs. Only programs
//! for benches ask.

/// How far a packet goes that is cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cut {
    /// Headers are read.
    Parsed = 1,
    /// The key is hashed, and its tag was found in the bucket.
    Bucket = 2,
    /// The record has the packet's key.
    Key = 3,
    /// The lines of the record that an ordinary packet changes are asked for.
    Asked = 4,
    /// The clock was read, which waits for all that was asked for.
    Clock = 5,
    /// The record's lock was taken and given back.
    Locked = 6,
}

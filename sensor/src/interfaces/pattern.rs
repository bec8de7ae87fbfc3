//! Patterns as in a shell: `*` stands for any number of bytes, `?` for one; all others for themselves.

/// Whether a whole name is what a pattern describes. Takes time in the order of their product at most.
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut at, mut position) = (0, 0);
    // Behind the last star, and where in the name it stops for now.
    let mut star: Option<(usize, usize)> = None;
    while position < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at + 1, position));
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == name[position] => {
                at += 1;
                position += 1;
            }
            _ => {
                let Some((behind, end)) = &mut star else { return false };
                *end += 1;
                (at, position) = (*behind, *end);
            }
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn stars_and_question_marks() {
        for (pattern, name) in [
            ("*", "eth0"),
            ("*", ""),
            ("veth*", "veth"),
            ("veth*", "veth12ab"),
            ("eth?", "eth0"),
            ("*0", "veth00"),
            ("v*h*0", "vethh10"),
            ("**", "x"),
            ("a*b*c", "abbc"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in
            [("", "x"), ("veth*", "xveth"), ("eth?", "eth"), ("eth?", "eth10"), ("*0", "veth01"), ("a*b*c", "acb")]
        {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
        let long = "a".repeat(15);
        assert!(!matches(&"*a".repeat(31), &(long + "b")), "and that soon");
    }
}

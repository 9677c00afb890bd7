//! Groups of the system by name or number. Read from `/etc/group`, since that is all there is where
//! an agent runs: in a container of its own.

use std::fs;

use rustix::fs::Gid;

const FILE: &str = "/etc/group";

/// The id of a group given by name or number. Names are looked up when the configuration is read.
pub(super) fn resolve(name: &str) -> Result<Gid, String> {
    if let Some(gid) = number(name) {
        return Ok(gid);
    }
    let groups =
        fs::read_to_string(FILE).map_err(|e| format!("not a number, and {FILE} cannot be read: {e}"))?;
    find(&groups, name)
        .ok_or_else(|| format!("no such group in {FILE}; use its number where the name is unknown"))
}

/// The highest number means "leave unchanged" to the system.
pub(super) fn number(text: &str) -> Option<Gid> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let id = digits.then(|| text.parse().ok()).flatten()?;
    (id != u32::MAX).then(|| Gid::from_raw(id))
}

/// Lines are `name:password:id:members`.
fn find(groups: &str, name: &str) -> Option<Gid> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| number(fields.nth(1)?)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_its_whole_name() {
        let groups = "root:x:0:\nistio-proxy2:x:7:\nistio-proxy:x:1337:a,b\nbroken\nodd:x:y:\n";
        assert_eq!(find(groups, "istio-proxy"), Some(Gid::from_raw(1337)));
        assert_eq!(find(groups, "root"), Some(Gid::from_raw(0)));
        for name in ["istio", "broken", "odd", "", "x"] {
            assert_eq!(find(groups, name), None, "{name}");
        }
    }

    #[test]
    fn a_number_passes_as_it_is_except_the_one_that_means_no_change() {
        assert_eq!(number("1337"), Some(Gid::from_raw(1337)));
        for text in ["4294967295", "4294967296", "-1", "+1", "", "1a"] {
            assert_eq!(number(text), None, "{text}");
        }
    }
}

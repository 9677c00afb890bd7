use super::*;
use crate::store::NOTE_LIMIT;

#[test]
fn notes_survive_until_nobody_wants_them() {
    let home = Home::new();
    let store = home.store();
    assert_eq!(store.notes().unwrap(), Vec::<Vec<u8>>::new());
    store.write_note("a", b"first").unwrap();
    store.write_note("a", b"second").unwrap();
    store.write_note("b", b"other").unwrap();
    let mut notes = home.store().notes().unwrap();
    notes.sort();
    assert_eq!(notes, [b"other".to_vec(), b"second".to_vec()]);
    store.retain_notes(&["a".to_owned()].into()).unwrap();
    assert_eq!(home.store().notes().unwrap(), [b"second".to_vec()]);
    assert_eq!(mode(&home.v1("content/notes")), 0o700);
}

#[test]
fn a_note_that_cannot_be_read_is_left_out_and_counted() {
    let home = Home::new();
    let store = home.store();
    store.write_note("a", b"note").unwrap();
    fs::create_dir(home.v1("content/notes/folder")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", home.v1("content/notes/link")).unwrap();
    assert_eq!(store.notes().unwrap(), [b"note".to_vec()]);
    assert_eq!(store.dropped_records(), 2);
}

#[test]
fn a_note_over_the_limit_is_refused() {
    let store = Home::new().store();
    let refused = store.write_note("a", &vec![0; NOTE_LIMIT as usize + 1]);
    assert!(matches!(refused, Err(StoreError::RecordTooLarge { .. })));
}

use std::os::unix::fs::symlink;

use super::*;

#[test]
fn a_record_is_found_by_who_asked_for_that_source_and_by_nobody_else() {
    let home = Home::new();
    let store = home.store();
    let mine = Audience::Private(store.fingerprint(b"mine"));
    let theirs = Audience::Private(store.fingerprint(b"theirs"));
    let (stored, record) = remember(&store, &mine);
    assert_eq!(store.lookup(&mine, SOURCE).unwrap(), Some(record));
    assert_eq!(store.lookup(&mine, "https://example.org/filter.wasm").unwrap(), None);
    for other in [theirs, Audience::Public] {
        assert_eq!(store.lookup(&other, SOURCE).unwrap(), None);
        assert_eq!(store.view(&other, &stored.payload).unwrap(), None);
    }
    assert_eq!(store.dropped_records(), 0);
}

#[test]
fn a_record_without_its_audiences_view_is_a_miss() {
    let home = Home::new();
    let store = home.store();
    let theirs = Audience::Private(store.fingerprint(b"theirs"));
    let (_, record) = remember(&store, &Audience::Public);
    store.record(&theirs, SOURCE, &record).unwrap();
    assert_eq!(store.lookup(&theirs, SOURCE).unwrap(), None, "the content alone gives nobody access");
}

#[test]
fn a_newer_record_takes_the_place_of_the_older() {
    let home = Home::new();
    let store = home.store();
    let (_, mut record) = remember(&store, &Audience::Public);
    for version in [Some("8".to_owned()), None] {
        record.resource_version = version;
        store.record(&Audience::Public, SOURCE, &record).unwrap();
        assert_eq!(store.lookup(&Audience::Public, SOURCE).unwrap().as_ref(), Some(&record));
    }
    only_file(&home.v1("content/index"));
}

#[test]
fn a_record_keeps_whole_seconds_and_no_time_before_1970() {
    let home = Home::new();
    let store = home.store();
    let (_, mut record) = remember(&store, &Audience::Public);
    for (given, kept) in [
        (UNIX_EPOCH + Duration::from_millis(1_999), UNIX_EPOCH + Duration::from_secs(1)),
        (UNIX_EPOCH - Duration::from_secs(5), UNIX_EPOCH),
    ] {
        record.fetched_at = given;
        store.record(&Audience::Public, SOURCE, &record).unwrap();
        assert_eq!(store.lookup(&Audience::Public, SOURCE).unwrap().unwrap().fetched_at, kept);
    }
}

#[test]
fn neither_source_nor_credential_is_written_anywhere() {
    let home = Home::new();
    let store = home.store();
    remember(&store, &Audience::Private(store.fingerprint(b"correct horse")));
    let files = files(&home.path());
    assert_eq!(files.len(), 8, "key, age, lock, content, its use and seal, view, record");
    for (path, content) in files {
        let seen = format!("{} {}", path.display(), String::from_utf8_lossy(&content));
        assert!(!seen.contains("hunter2") && !seen.contains("correct horse"), "{seen}");
    }
}

#[test]
fn a_truncated_record_is_dropped_and_counted() {
    let home = Home::new();
    let store = home.store();
    let (_, record) = remember(&store, &Audience::Public);
    let path = only_file(&home.v1("content/index"));
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        assert_eq!(store.lookup(&Audience::Public, SOURCE).unwrap(), None, "{length}");
        assert_eq!(store.dropped_records(), length as u64 + 1);
    }
    store.record(&Audience::Public, SOURCE, &record).unwrap();
    assert_eq!(store.lookup(&Audience::Public, SOURCE).unwrap(), Some(record));
    assert_eq!(store.stats().dropped_records, whole.len() as u64);
}

#[test]
fn a_record_that_says_what_cannot_be_is_dropped() {
    let home = Home::new();
    let store = home.store();
    remember(&store, &Audience::Public);
    let path = only_file(&home.v1("content/index"));
    let good: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let mut dropped = 0;
    for (field, value) in [
        ("format", 2.into()),
        ("audience", "private:00".into()),
        ("key", "00".into()),
        ("payload", "sha256:../../../etc/passwd".into()),
        ("source", "".into()),
        ("size", (-1).into()),
        ("fetched_at", u64::MAX.into()),
        ("url", serde_json::Value::Null),
    ] {
        let mut bad = good.clone();
        bad[field] = value;
        assert_ne!(bad, good, "{field} is a field");
        fs::write(&path, serde_json::to_vec(&bad).unwrap()).unwrap();
        assert_eq!(store.lookup(&Audience::Public, SOURCE).unwrap(), None, "{field}");
        dropped += 1;
        assert_eq!(store.dropped_records(), dropped, "{field}");
    }
}

#[test]
fn a_record_with_another_size_than_the_module_is_a_miss() {
    let home = Home::new();
    let store = home.store();
    let (_, mut record) = remember(&store, &Audience::Public);
    record.size += 1;
    store.record(&Audience::Public, SOURCE, &record).unwrap();
    assert_eq!(store.lookup(&Audience::Public, SOURCE).unwrap(), None);
}

#[test]
fn a_record_under_anothers_name_is_dropped() {
    let home = Home::new();
    let store = home.store();
    let theirs = Audience::Private(store.fingerprint(b"theirs"));
    let stored = put(&store, &theirs, b"theirs");
    store.record(&theirs, SOURCE, &record_of(&stored)).unwrap();
    let their_record = fs::read(only_file(&home.v1("content/index"))).unwrap();
    fs::remove_dir_all(home.v1("content/index")).unwrap();
    // Public has a view of the same payload, so that only the record's own words speak against it.
    put(&store, &Audience::Public, b"theirs");
    remember(&store, &Audience::Public);
    let path = only_file(&home.v1("content/index"));
    fs::write(&path, their_record).unwrap();
    assert_eq!(store.lookup(&Audience::Public, SOURCE).unwrap(), None);
    assert_eq!(store.dropped_records(), 1);
}

#[test]
fn a_record_that_could_not_be_read_back_is_not_written() {
    let home = Home::new();
    let store = home.store();
    let (_, mut record) = remember(&store, &Audience::Public);
    let known = store.lookup(&Audience::Public, SOURCE).unwrap();
    record.url = "x".repeat(64 << 10);
    let error = store.record(&Audience::Public, SOURCE, &record).unwrap_err();
    assert!(matches!(error, StoreError::RecordTooLarge { .. }), "{error}");
    assert_eq!(store.lookup(&Audience::Public, SOURCE).unwrap(), known);
    assert!(files(&home.v1("content/ingest")).is_empty());

    let path = only_file(&home.v1("content/index"));
    let mut padded = fs::read(&path).unwrap();
    padded.resize((64 << 10) + 1, b' ');
    fs::write(&path, padded).unwrap();
    assert_eq!(store.lookup(&Audience::Public, SOURCE).unwrap(), None);
}

#[test]
fn a_record_that_is_a_link_is_dropped_and_its_target_never_written() {
    let home = Home::new();
    let store = home.store();
    let (_, record) = remember(&store, &Audience::Public);
    let path = only_file(&home.v1("content/index"));
    let target = home.outside().join("record");
    fs::rename(&path, &target).unwrap();
    let before = fs::read(&target).unwrap();
    symlink(&target, &path).unwrap();
    assert_eq!(store.lookup(&Audience::Public, SOURCE).unwrap(), None, "a good record, but outside");
    assert_eq!(store.dropped_records(), 1);

    let newer = Record { resource_version: None, ..record };
    store.record(&Audience::Public, SOURCE, &newer).unwrap();
    assert_eq!(store.lookup(&Audience::Public, SOURCE).unwrap(), Some(newer));
    assert_eq!(fs::read(&target).unwrap(), before);
}

#[test]
fn a_record_of_before_there_were_validators_is_read() {
    let home = Home::new();
    let store = home.store();
    let (_, record) = remember(&store, &Audience::Public);
    let path = only_file(&home.v1("content/index"));
    let mut entry: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert!(entry.as_object_mut().unwrap().remove("etag").is_some());
    fs::write(&path, entry.to_string()).unwrap();
    let older = Record { validators: Validators::default(), ..record };
    assert_eq!(store.lookup(&Audience::Public, SOURCE).unwrap(), Some(older));
}

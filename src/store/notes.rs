//! Notes: what the agent writes down for its next start, one file for each subject. Hints like the
//! index: losing one costs a wait, never correctness.

use std::collections::BTreeSet;
use std::io::Read as _;

use super::Store;
use super::error::StoreError;
use super::key::Purpose;
use super::layout::Way;

/// The longest note in bytes that is written or read.
pub const NOTE_LIMIT: u64 = 16 << 20;

impl Store {
    /// Writes a note, durably, in the place of the one that there was.
    pub fn write_note(&self, subject: &str, note: &[u8]) -> Result<(), StoreError> {
        if note.len() as u64 > NOTE_LIMIT {
            return Err(StoreError::RecordTooLarge { size: note.len(), limit: NOTE_LIMIT });
        }
        self.write_small(&Way::notes(), &self.note_name(subject), note, || Ok(()))
    }

    /// All notes. One that cannot be read is left out and counted as a dropped record.
    pub fn notes(&self) -> Result<Vec<Vec<u8>>, StoreError> {
        let Some(folder) = Way::notes().walk(self.root())? else { return Ok(Vec::new()) };
        let mut notes = Vec::new();
        for name in folder.names()? {
            let mut note = Vec::new();
            let read = match folder.open(&name) {
                Ok(None) => continue,
                Ok(Some(file)) => file.reader().take(NOTE_LIMIT + 1).read_to_end(&mut note).is_ok(),
                Err(_) => false,
            };
            if read && note.len() as u64 <= NOTE_LIMIT {
                notes.push(note);
            } else {
                self.drop_record();
            }
        }
        Ok(notes)
    }

    /// Removes the notes about all but these subjects, and what cannot be a note.
    pub fn retain_notes(&self, subjects: &BTreeSet<String>) -> Result<(), StoreError> {
        let Some(folder) = Way::notes().walk(self.root())? else { return Ok(()) };
        let kept: BTreeSet<String> = subjects.iter().map(|subject| self.note_name(subject)).collect();
        for name in folder.names()? {
            if !kept.contains(&name) {
                folder.remove(&name)?;
            }
        }
        Ok(())
    }

    fn note_name(&self, subject: &str) -> String {
        format!("{}.json", hex::encode(self.key().hash(Purpose::Note, &[subject.as_bytes()])))
    }
}

//! What the store is asked and told: lookups under the pull policy, and the way of a body into it.

use std::io::{self, Read};
use std::sync::atomic::Ordering;
use std::thread;

use super::{Asked, Inner, Progress, ResolveError, digest_key, is_expected, source_key};
use crate::digest::{BlobDigest, PayloadDigest, SourceDigest};
use crate::fetch::{Body, FetchError, Resumed};
use crate::metrics::result;
use crate::module::{Module, ModuleUrl, PullPolicy, Validators};
use crate::store::{Finished, Ingest, PreparedRecord, Record, Sighting, StoreError, Stored};
use crate::wasm::{self, Layers, Packaging, UnpackError};

impl Inner {
    /// What the store has that serves this request under its policy.
    pub(super) fn look_up(&self, asked: &Asked) -> Result<Option<Module>, ResolveError> {
        let request = &asked.request;
        let is_current = |record: &Record| match request.policy {
            PullPolicy::IfNotPresent => true,
            PullPolicy::Always => {
                record.resource_version.is_some() && record.resource_version == request.resource_version
            }
        };
        // What lies under what is expected was compared with it before it was written.
        if let Some((record, stored)) = self.find(asked, &source_key(request))?
            && is_current(&record)
            && let Some(module) = self.take(asked, &record, stored)?
        {
            return Ok(Some(module));
        }
        if request.expected.is_some()
            && let Some((record, stored)) = self.find(asked, &request.url.canonical())?
            && is_current(&record)
            && is_expected(request.expected.as_ref(), &record.payload, &record.source)
        {
            return self.take(asked, &record, stored);
        }
        Ok(None)
    }

    /// What another process has brought, for one who looked before and found `before` under the source's
    /// name. Asked for under the same version as this request, it is what this would bring, also for who
    /// wants to be sure: nothing but a fetch writes a record, and this one is not the one from before. (One of the same
    /// second that says the same costs a fetch.)
    pub(super) fn brought_since(
        &self,
        asked: &Asked,
        before: Option<&Record>,
    ) -> Result<Option<Module>, ResolveError> {
        if let Some(module) = self.look_up(asked)? {
            return Ok(Some(module));
        }
        match self.find(asked, &source_key(&asked.request))? {
            Some((record, stored))
                if before != Some(&record) && record.resource_version == asked.request.resource_version =>
            {
                self.take(asked, &record, stored)
            }
            _ => Ok(None),
        }
    }

    pub(super) fn record(&self, asked: &Asked, key: &str) -> Result<Option<Record>, ResolveError> {
        Ok(self.find(asked, key)?.map(|(record, _)| record))
    }

    pub(super) fn find(&self, asked: &Asked, key: &str) -> Result<Option<(Record, Sighting)>, ResolveError> {
        self.store.find(&asked.audience, key).map_err(|source| asked.store_error(source))
    }

    /// What was found, to be handed out, if it is still there.
    pub(super) fn take(
        &self,
        asked: &Asked,
        record: &Record,
        found: Sighting,
    ) -> Result<Option<Module>, ResolveError> {
        let stored = self.store.take(&asked.audience, found).map_err(|source| asked.store_error(source))?;
        Ok(stored.map(|stored| Module {
            path: stored.path,
            payload: stored.payload,
            source: record.source,
            size: stored.size,
            cached: true,
        }))
    }

    /// The module that this manifest led to before.
    pub(super) fn known(
        &self,
        asked: &Asked,
        manifest: SourceDigest,
        is_expected_already: bool,
    ) -> Result<Option<Module>, ResolveError> {
        let request = &asked.request;
        let keys = [Some(source_key(request)), digest_key(&request.url, &manifest)];
        for key in keys.into_iter().flatten() {
            if let Some((record, stored)) = self.find(asked, &key)?
                && record.source == manifest
                && (is_expected_already
                    || is_expected(request.expected.as_ref(), &record.payload, &record.source))
                && let Some(module) = self.take(asked, &record, stored)?
            {
                return Ok(Some(module));
            }
        }
        Ok(None)
    }

    /// Where the module is written to: for a layer that is the module, perhaps behind what an earlier pull
    /// left of it.
    pub(super) fn begin(
        &self,
        asked: &Asked,
        layer: Option<(BlobDigest, u64)>,
    ) -> Result<Ingest, ResolveError> {
        let ingest = match layer {
            Some((digest, size)) => self.store.resume(&asked.audience, &digest, size),
            None => self.store.ingest(),
        };
        ingest.map_err(|source| asked.store_error(source))
    }

    /// Streams the body into the store. What any digest covers has been read and compared before
    /// the module becomes visible. The check, which costs about as much as all the rest, runs beside
    /// it; what it says counts only of a body that is what was promised. Says of an image whether the module
    /// was in its topmost layer.
    pub(super) fn take_in(
        &self,
        asked: &Asked,
        body: Body,
        ingest: Ingest,
        source_is_expected: bool,
        progress: &Progress,
    ) -> Result<(Module, bool), ResolveError> {
        let budgets = &asked.config.budgets;
        let following = ingest.follow().map_err(|source| asked.store_error(source))?;
        let (finished, source, records, topmost, checked) = thread::scope(|scope| {
            let check = thread::Builder::new()
                .name("module-check".to_owned())
                .spawn_scoped(scope, || wasm::check(following, budgets));
            // Where this fails, the ingest is gone, and the check ends by that.
            let Written { finished, source, validators, topmost } =
                self.write(asked, body, ingest, source_is_expected, progress)?;
            let (payload, size) = (finished.payload(), finished.size());
            let records = self.prepare_records(asked, payload, source, size, validators);
            let checked = match check {
                Ok(check) => check.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                // No thread is to be had.
                Err(_) => {
                    wasm::check(finished.reader().map_err(|source| asked.store_error(source))?, budgets)
                }
            };
            Ok((finished, source, records, topmost, checked))
        })?;
        checked.map_err(|source| ResolveError::Module { url: asked.request.url.to_string(), source })?;
        let committed = finished.commit_recorded(&asked.audience, records);
        let Stored { path, payload, size } = committed.map_err(|source| asked.store_error(source))?;
        Ok((Module { path, payload, source, size, cached: false }, topmost))
    }

    /// Writes the body to disk and holds it to what was promised and what is expected.
    fn write(
        &self,
        asked: &Asked,
        body: Body,
        mut ingest: Ingest,
        source_is_expected: bool,
        progress: &Progress,
    ) -> Result<Written, ResolveError> {
        let url = || asked.request.url.to_string();
        let mut body = Counted { body, progress };
        let had = ingest.size() > 0;
        // This thread unpacks already, and hashes the body as it comes.
        if body.packaging() != Packaging::Raw {
            ingest.hash_beside();
        }
        let unpacked = wasm::unpack_layers(&mut body, &asked.config.limits, &mut ingest);
        self.count_resumes(had, body.body.resumed());
        if let Err(error) = unpacked {
            let error = match error {
                UnpackError::Read(source) => asked.fetch_error(FetchError::from_io(source)),
                UnpackError::Write(source) => asked.store_error(StoreError::from_io(source)),
                source => ResolveError::Unpack { url: url(), source },
            };
            // What only stopped coming may go on with the next pull.
            if error.is_permanent() {
                ingest.discard();
            }
            return Err(error);
        }
        let mut finished = ingest.finish().map_err(|source| asked.store_error(source))?;
        // The disk works while the check comes to its end.
        finished.start_sync();
        let payload = finished.payload();
        let (validators, topmost) = (body.body.validators().clone(), body.body.is_topmost());
        let source = body.body.finish(&payload).map_err(|source| asked.fetch_error(source))?;
        if let Some(expected) = asked.request.expected
            && !expected.is_payload(&payload)
            && !source_is_expected
        {
            return Err(ResolveError::Unexpected { url: url(), expected, payload, found: source });
        }
        Ok(Written { finished, source, validators, topmost })
    }

    /// Writes the records of what is about to be in the store, which costs no time while the check goes
    /// on.
    pub(super) fn prepare_records(
        &self,
        asked: &Asked,
        payload: PayloadDigest,
        source: SourceDigest,
        size: u64,
        validators: Validators,
    ) -> Vec<PreparedRecord> {
        let key = source_key(&asked.request);
        let by_digest = digest_key(&asked.request.url, &source).filter(|by_digest| *by_digest != key);
        let record = self.record_of(asked, payload, source, size, validators);
        let prepare = |key: String| {
            let prepared = self.store.prepare_record(&asked.audience, &key, &record);
            prepared.inspect_err(|error| cannot_record(asked, error)).ok()
        };
        [Some(key), by_digest].into_iter().flatten().filter_map(prepare).collect()
    }

    fn count_resumes(&self, had_the_beginning: bool, resumed: Resumed) {
        let count = |label| self.metrics.fetch_resumes.get_or_create(&result(label));
        if had_the_beginning {
            count("leftover").inc();
        }
        if resumed.times > 0 {
            count("connection").inc_by(resumed.times);
        }
        self.metrics.fetch_saved_bytes.inc_by(resumed.saved);
    }

    /// Writes an index record. Without it the module is as good, and costs a fetch next time.
    pub(super) fn remember(&self, asked: &Asked, key: &str, module: &Module) {
        let validators = self.validators(asked, module);
        let record = self.record_of(asked, module.payload, module.source, module.size, validators);
        // Of what has just come, whoever fetched it has written its own records already.
        if !module.cached
            && let Ok(Some(known)) = self.store.lookup(&asked.audience, key)
            && (Record { fetched_at: record.fetched_at, ..known }) == record
        {
            return;
        }
        if let Err(error) = self.store.record(&asked.audience, key, &record) {
            cannot_record(asked, &error);
        }
    }

    /// Those that were written down when what the server sent was this.
    fn validators(&self, asked: &Asked, module: &Module) -> Validators {
        if !matches!(asked.request.url, ModuleUrl::Http(_)) {
            return Validators::default();
        }
        let known = self.store.lookup(&asked.audience, &source_key(&asked.request)).ok().flatten();
        let same = known.filter(|known| (known.source, known.payload) == (module.source, module.payload));
        same.map(|known| known.validators).unwrap_or_default()
    }

    /// The module that the server says is still what it serves, by what it gave along with it; none where
    /// that is gone meanwhile. It is as good as just fetched.
    pub(super) fn unchanged(
        &self,
        asked: &Asked,
        validators: &Validators,
    ) -> Result<Option<Module>, ResolveError> {
        let key = source_key(&asked.request);
        let Some((record, stored)) = self.find(asked, &key)? else { return Ok(None) };
        if record.validators != *validators {
            return Ok(None);
        }
        let module = self.take(asked, &record, stored)?;
        module.iter().for_each(|module| self.remember(asked, &key, module));
        Ok(module)
    }

    fn record_of(
        &self,
        asked: &Asked,
        payload: PayloadDigest,
        source: SourceDigest,
        size: u64,
        validators: Validators,
    ) -> Record {
        Record {
            payload,
            source,
            size,
            resource_version: asked.request.resource_version.clone(),
            fetched_at: self.clock.wall(),
            url: asked.request.url.to_string(),
            validators,
        }
    }
}

/// A module in the ingest, as its source promised it.
struct Written {
    finished: Finished,
    source: SourceDigest,
    validators: Validators,
    /// Of an image: it was in the topmost layer.
    topmost: bool,
}

fn cannot_record(asked: &Asked, error: &StoreError) {
    tracing::warn!(url = %asked.request.url, "cannot write an index record: {error}");
}

/// Tells [`Progress`] what has been read.
struct Counted<'a> {
    body: Body,
    progress: &'a Progress,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.body.read(buffer)?;
        self.progress.done.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

impl Layers for Counted<'_> {
    fn packaging(&self) -> Packaging {
        self.body.packaging()
    }

    fn next_layer(&mut self) -> io::Result<bool> {
        self.body.next_layer()
    }
}

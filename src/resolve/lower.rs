//! What other stores of this machine have. They save the download and nothing else: the source has said
//! before that whoever asks may have it, or there is nobody to ask.

use std::io::Read as _;

use super::{Asked, Inner, ResolveError};
use crate::digest::{PayloadDigest, SourceDigest};
use crate::metrics::result;
use crate::module::{Module, Validators};
use crate::store::{Lower, StoreError, Stored};
use crate::wasm;

impl Inner {
    /// The module with these bytes out of a lower store, if one has it; `source` is what it came from.
    /// A file with other bytes is refused, and the next one tried.
    pub(super) fn bring_from_below(
        &self,
        asked: &Asked,
        payload: PayloadDigest,
        source: SourceDigest,
    ) -> Result<Option<Module>, ResolveError> {
        let count = |label| self.metrics.lower_modules.get_or_create(&result(label)).inc();
        for lower in self.store.lower(&payload) {
            let path = lower.path.display().to_string();
            match self.copy_from_below(asked, lower, payload, source)? {
                Some(module) => {
                    count("used");
                    tracing::debug!(url = %asked.request.url, path, "a lower store has the module");
                    return Ok(Some(module));
                }
                None => {
                    count("refused");
                    tracing::warn!(url = %asked.request.url, path, "a file of a lower store is damaged");
                }
            }
        }
        Ok(None)
    }

    fn copy_from_below(
        &self,
        asked: &Asked,
        lower: Lower,
        payload: PayloadDigest,
        source: SourceDigest,
    ) -> Result<Option<Module>, ResolveError> {
        let limit = asked.config.limits.max_module_bytes;
        if lower.size > limit {
            return Ok(None);
        }
        let failed = |source: StoreError| asked.store_error(source);
        self.store.make_room(lower.size);
        let mut ingest = self.store.ingest().map_err(failed)?;
        let (mut reader, mut buffer) = (lower.reader.take(limit.saturating_add(1)), vec![0; 256 * 1024]);
        loop {
            // What cannot be read is as good as damaged; what cannot be written is an error.
            let Ok(read) = reader.read(&mut buffer) else { return Ok(None) };
            if read == 0 {
                break;
            }
            let write = std::io::Write::write_all(&mut ingest, buffer.get(..read).unwrap_or_default());
            write.map_err(|error| failed(StoreError::from_io(error)))?;
        }
        let finished = ingest.finish().map_err(failed)?;
        if finished.payload() != payload {
            return Ok(None);
        }
        let reader = finished.reader().map_err(failed)?;
        wasm::check(reader, &asked.config.budgets)
            .map_err(|source| ResolveError::Module { url: asked.request.url.to_string(), source })?;
        let records =
            self.prepare_records(asked, finished.payload(), source, finished.size(), Validators::default());
        let stored = finished.commit_recorded(&asked.audience, records).map_err(failed)?;
        let Stored { path, payload, size } = stored;
        Ok(Some(Module { path, payload, source, size, cached: false }))
    }
}

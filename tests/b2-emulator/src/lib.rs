//! Backblaze B2's native API in memory, for tests: the calls that our clients make, and faults on demand.
pub mod calls;
pub mod content;
pub mod error;
pub mod faults;
mod http;
mod model;
mod names;
pub mod options;
mod requests;
pub mod state;
pub mod version;

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use error::B2Error;
use faults::Fault;
use model::Model;
use options::{KeyRules, Options};
use state::{Counters, Shared};
use version::Version;

#[derive(Debug, thiserror::Error)]
#[error("Start the emulator on {listen}")]
pub struct StartError {
    listen: std::net::SocketAddr,
    source: io::Error,
}

/// A running server with threads of its own; it ends when dropped.
pub struct Emulator {
    shared: Arc<Shared>,
    key: (String, String),
    /// None only while it is being dropped.
    runtime: Option<Runtime>,
}

impl Emulator {
    pub fn start(options: Options) -> Result<Self, StartError> {
        let listen = options.listen;
        Self::try_start(options).map_err(|source| StartError { listen, source })
    }

    fn try_start(options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind(options.listen)?;
        listener.set_nonblocking(true)?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let mut model = Model::new(options.limits);
        model
            .add_key(&options.key_id, &options.key, KeyRules::default())
            .expect("the master key names no bucket");
        let shared = Arc::new(Shared::new(endpoint, model));
        let mut threads = Builder::new_multi_thread();
        let runtime =
            threads.worker_threads(options.workers).thread_name("b2-emulator").enable_io().build()?;
        let entered = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener)?;
        drop(entered);
        runtime.spawn(http::serve(shared.clone(), listener));
        Ok(Self { shared, key: (options.key_id, options.key), runtime: Some(runtime) })
    }

    /// "http://127.0.0.1:PORT", the place of api.backblazeb2.com, of the pods and of downloads.
    pub fn endpoint(&self) -> String {
        self.shared.endpoint.clone()
    }

    /// Id and secret of the master key.
    pub fn key(&self) -> (String, String) {
        self.key.clone()
    }

    /// The id of the new bucket.
    pub fn create_bucket(&self, name: &str) -> Result<String, B2Error> {
        self.shared.lock().model.create_bucket(name)
    }

    /// Id and secret of a new key; None if the bucket is not there.
    pub fn create_key(&self, rules: KeyRules) -> Option<(String, String)> {
        self.shared.lock().model.create_key(rules)
    }

    pub fn counters(&self) -> Counters {
        self.shared.lock().counters.clone()
    }

    /// What no correct client does: unknown calls, malformed requests, two uploads at once on one URL.
    pub fn violations(&self) -> Vec<String> {
        self.shared.lock().violations.clone()
    }

    /// The visible version of each name, in the order of the names; empty if there is no such bucket.
    pub fn files(&self, bucket_name: &str) -> Vec<Arc<Version>> {
        let state = self.shared.lock();
        let bucket = state.model.bucket_named(bucket_name);
        bucket.map_or(Vec::new(), |bucket| bucket.visible_files().cloned().collect())
    }

    /// All versions, hide markers and unfinished large files, in the order of b2_list_file_versions.
    pub fn versions(&self, bucket_name: &str) -> Vec<Arc<Version>> {
        let state = self.shared.lock();
        let bucket = state.model.bucket_named(bucket_name);
        bucket.map_or(Vec::new(), |bucket| bucket.all_versions().cloned().collect())
    }

    pub fn version(&self, file_id: &str) -> Option<Arc<Version>> {
        self.shared.lock().model.version(file_id).cloned()
    }

    /// The id under which `Counters::fault` counts it.
    pub fn inject(&self, fault: Fault) -> u64 {
        self.shared.lock().faults.add(fault)
    }

    pub fn clear_faults(&self) {
        self.shared.lock().faults.clear();
    }

    /// Lets all held answers go.
    pub fn release_held(&self) {
        self.shared.release_held();
    }

    /// Does now what `FaultKind::LateCompletion` put off; returns how many calls that were.
    pub fn complete_late(&self) -> usize {
        self.shared.complete_late()
    }

    pub fn expire_account_tokens(&self) {
        self.shared.lock().model.expire_account_tokens();
    }

    pub fn expire_upload_urls(&self) {
        self.shared.lock().model.expire_upload_urls();
    }

    /// Forgets counters, violations, faults and late effects; files, keys and tokens stay.
    pub fn reset(&self) {
        self.shared.reset();
    }

    /// Waits for the counters to meet a condition; false if the time runs out first.
    pub fn wait_until(&self, timeout: Duration, met: impl FnMut(&Counters) -> bool) -> bool {
        self.shared.wait_until(timeout, met)
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Not waiting for the threads makes it right in an async test, too.
            runtime.shutdown_background();
        }
    }
}

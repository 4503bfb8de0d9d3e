//! The runtime that `tough` wants, on a thread of its own: whoever asks may be in another runtime already.

use crate::TrustError;

/// Runs to the end what `tough` calls async.
pub(crate) fn block_on<T: Send>(work: impl Future<Output = T> + Send) -> Result<T, TrustError> {
    let broken = |why: String| TrustError::Host(format!("cannot run a thread for it: {why}"));
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("trust".to_owned());
        let thread = thread.spawn_scoped(scope, || {
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            runtime.map(|runtime| runtime.block_on(work))
        });
        let ended = thread.map_err(|e| broken(e.to_string()))?.join();
        ended.map_err(|_| broken("it panicked".to_owned()))?.map_err(|e| broken(e.to_string()))
    })
}

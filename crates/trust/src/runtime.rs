//! The runtime that `tough` wants, on the thread that asks.

use crate::TrustError;

/// Runs to the end what `tough` calls async. Not to be called from a task of another runtime.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> Result<T, TrustError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|e| TrustError::Host(format!("cannot start a runtime: {e}")))?;
    Ok(runtime.block_on(work))
}

//! The requests that wait for a worker, and which of them go to it together.
//!
//! A worker computes one after the other. For a model that answers in a few microseconds, to sleep and be woken
//! between two requests takes longer than to answer them: those that wait anyway are sent to it at once, so
//! that neither side sleeps in between. They are answered one by one, and each has its own times.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::{Job, Traffic};
use crate::plane::batch::{self, BatchRules};

/// A model whose last inference took less is quick.
const QUICK: Duration = Duration::from_micros(200);
/// The most requests that are sent together.
const MAX_TOGETHER: usize = 8;
/// The most bytes of their inputs: so much fits into the socket though nobody reads from it, as a worker does
/// not that has a long answer to write.
const MAX_BYTES_TOGETHER: usize = 32 << 10;

/// The receiving end of an instance's queue.
pub(super) struct Queue {
    jobs: mpsc::Receiver<Job>,
    /// Taken out, and too large to go with the others.
    held: Option<Job>,
    quick: bool,
}

impl Queue {
    pub(super) fn new(jobs: mpsc::Receiver<Job>) -> Self {
        Self { jobs, held: None, quick: false }
    }

    /// The next job, once there is one; `None` when there can be none any more. Safe to cancel.
    pub(super) async fn next(&mut self) -> Option<Job> {
        match self.held.take() {
            Some(job) => Some(job),
            None => self.jobs.recv().await,
        }
    }

    /// The jobs to send together, of which `first` is one unless nobody waits for it any more.
    pub(super) fn together(&mut self, first: Job) -> Vec<Job> {
        let most = if self.quick { MAX_TOGETHER } else { 1 };
        let now = Instant::now();
        let (mut together, mut bytes) = (Vec::with_capacity(most), 0);
        let mut next = Some(first);
        while let Some(job) = next.take() {
            // Otherwise the client has had its 504, or has gone.
            if !job.is_stale_at(now) {
                bytes += batch::bytes(&job.inputs);
                if bytes > MAX_BYTES_TOGETHER && !together.is_empty() {
                    self.held = Some(job);
                    break;
                }
                together.push(job);
            }
            if together.len() < most && bytes <= MAX_BYTES_TOGETHER {
                next = self.jobs.try_recv().ok();
            }
        }
        together
    }

    /// The jobs to run as one, of which `first` is one unless nobody waits for it any more: it, and those behind it
    /// that fit it, as far as the rules allow.
    pub(super) async fn gather(&mut self, first: Job, rules: BatchRules) -> Vec<Job> {
        if first.is_stale() {
            return Vec::new();
        }
        let mut end = patience(&first, rules);
        let mut rows = batch::rows(&first.inputs).unwrap_or(usize::MAX);
        let mut bytes = batch::bytes(&first.inputs);
        let mut jobs = vec![first];
        while rows < rules.max_rows {
            let Some(next) = self.next_until(end).await else { break };
            if next.is_stale() {
                continue;
            }
            let more = batch::rows(&next.inputs).unwrap_or(usize::MAX);
            rows = rows.saturating_add(more);
            bytes = bytes.saturating_add(batch::bytes(&next.inputs));
            let joins = next.traffic == Traffic::Live
                && rows <= rules.max_rows
                && bytes <= batch::MAX_BATCH_BYTES
                && batch::fit(&jobs[0].inputs, &next.inputs);
            if !joins {
                self.held = Some(next);
                break;
            }
            end = end.min(patience(&next, rules));
            jobs.push(next);
        }
        jobs
    }

    /// The next job, if there is one by `end`.
    async fn next_until(&mut self, end: Instant) -> Option<Job> {
        if let Ok(job) = self.jobs.try_recv() {
            return Some(job);
        }
        if end <= Instant::now() {
            return None;
        }
        timeout_at(end, self.jobs.recv()).await.unwrap_or_default()
    }

    /// What the model's last inference took.
    pub(super) fn took(&mut self, compute: Duration) {
        self.quick = compute < QUICK;
    }

    /// Takes no more jobs; those that are there can still be had.
    pub(super) fn close(&mut self) {
        self.jobs.close();
    }
}

/// Until when a job waits for others: half of its time at most, for the engine needs some too.
fn patience(job: &Job, rules: BatchRules) -> Instant {
    let time = job.deadline.saturating_duration_since(job.arrived);
    job.arrived + rules.max_delay.min(time / 2)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use engine::Tensor;
    use tokio::sync::oneshot;

    use super::super::{Answer, JobError, Traffic};
    use super::*;

    type Reply = oneshot::Receiver<Result<Answer, JobError>>;

    /// A job of so many floats, the first of which is its name.
    fn job(name: f32, floats: usize, limit: Duration) -> (Job, Reply) {
        let (reply, answer) = oneshot::channel();
        let tensor = Tensor::from_f32(vec![floats], &vec![name; floats]).unwrap();
        let inputs = Arc::new(vec![("x".to_owned(), tensor)]);
        let arrived = Instant::now();
        let deadline = arrived + limit;
        (Job { inputs, traffic: Traffic::Live, arrived, deadline, reply }, answer)
    }

    fn names(jobs: &[Job]) -> Vec<f32> {
        jobs.iter().map(|job| job.inputs[0].1.to_f32().unwrap()[0]).collect()
    }

    /// A queue with these jobs of so many floats, named by their places.
    fn queue(floats: &[usize]) -> (Queue, Vec<Reply>) {
        let (sender, jobs) = mpsc::channel(64);
        let mut replies = Vec::new();
        for (place, &floats) in floats.iter().enumerate() {
            let (job, reply) = job(place as f32, floats, Duration::from_secs(60));
            sender.try_send(job).unwrap();
            replies.push(reply);
        }
        (Queue::new(jobs), replies)
    }

    #[tokio::test]
    async fn only_a_quick_model_is_sent_several_and_not_too_many() {
        let (mut queue, _replies) = queue(&[1; 12]);
        let first = queue.next().await.unwrap();
        assert_eq!(names(&queue.together(first)), [0.0]);
        queue.took(Duration::from_micros(3));
        let first = queue.next().await.unwrap();
        let together = names(&queue.together(first));
        assert_eq!(together.len(), MAX_TOGETHER);
        assert_eq!(together[..2], [1.0, 2.0]);
        queue.took(Duration::from_millis(3));
        let first = queue.next().await.unwrap();
        assert_eq!(names(&queue.together(first)), [9.0]);
    }

    #[tokio::test]
    async fn what_does_not_fit_with_the_others_is_the_next() {
        let large = MAX_BYTES_TOGETHER / 4 + 1;
        let (mut queue, _replies) = queue(&[1, 1, large, 1, large]);
        queue.took(Duration::ZERO);
        for wanted in [&[0.0, 1.0][..], &[2.0], &[3.0], &[4.0]] {
            let first = queue.next().await.unwrap();
            assert_eq!(names(&queue.together(first)), wanted);
        }
        assert!(queue.next().await.is_none());
    }

    #[tokio::test]
    async fn those_for_whom_nobody_waits_are_left_out() {
        let (mut queue, mut replies) = queue(&[1; 4]);
        queue.took(Duration::ZERO);
        drop(replies.remove(1));
        let (late, _reply) = job(9.0, 1, Duration::ZERO);
        assert_eq!(names(&queue.together(late)), [0.0, 2.0, 3.0]);
    }

    /// Jobs of one row of so many floats each.
    fn rows(floats: &[usize]) -> (Queue, Vec<Reply>) {
        let (sender, jobs) = mpsc::channel(64);
        let mut replies = Vec::new();
        for &floats in floats {
            let (mut job, reply) = job(0.0, floats, Duration::from_secs(60));
            Arc::get_mut(&mut job.inputs).unwrap()[0].1.shape = vec![1, floats];
            sender.try_send(job).unwrap();
            replies.push(reply);
        }
        (Queue::new(jobs), replies)
    }

    #[tokio::test]
    async fn what_is_joined_has_no_more_bytes_than_allowed() {
        let rules = BatchRules { max_rows: 8, max_delay: Duration::ZERO };
        let half = batch::MAX_BATCH_BYTES / 4 / 2;
        for (floats, together) in [(half, 2), (half + 1, 1)] {
            let (mut queue, _replies) = rows(&[floats; 3]);
            let first = queue.next().await.unwrap();
            assert_eq!(queue.gather(first, rules).await.len(), together, "{floats}");
            assert!(queue.held.is_some(), "the next is kept");
        }
    }

    #[test]
    fn a_job_waits_for_others_for_half_of_its_time_at_most() {
        let second = Duration::from_secs(1);
        let wait = |limit: Duration, max_delay: Duration| {
            let (job, _reply) = job(0.0, 1, limit);
            patience(&job, BatchRules { max_rows: 2, max_delay }) - job.arrived
        };
        assert_eq!(wait(60 * second, second), second);
        assert_eq!(wait(2 * second, 60 * second), second);
        assert_eq!(wait(Duration::ZERO, 60 * second), Duration::ZERO);
    }
}

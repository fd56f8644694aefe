//! Which job is next: by priority, then age, as far as the host has CPU and memory to give.
//! Memory only, rebuilt from the store; knows no clock, no task, no container.
//!
//! A job that does not fit is passed over by later ones that do, but only [`MAX_PASSED_OVER`]
//! times; then nothing starts before it does.

use std::collections::{BTreeMap, HashMap};

use crate::config::Capacity;
use crate::job::{Demand, JobId};

/// How often a waiting job may be passed over by jobs behind it.
pub const MAX_PASSED_OVER: u32 = 16;
/// How many waiting jobs are looked at for one that fits.
const MAX_LOOKED_AT: usize = 64;

/// The waiting jobs and what the running ones took.
#[derive(Debug)]
pub struct Scheduler {
    /// What there is in all.
    capacity: Capacity,
    free: Capacity,
    queue_max: usize,
    waiting: BTreeMap<Place, Waiting>,
    places: HashMap<JobId, Place>,
    running: HashMap<JobId, Demand>,
    /// Jobs that were told to wait and are not yet stored.
    promised: usize,
}

/// Where a job stands in the queue: a higher priority first, then the older id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    priority: std::cmp::Reverse<i16>,
    id: JobId,
}

#[derive(Debug)]
struct Waiting {
    demand: Demand,
    passed_over: u32,
}

/// What becomes of a new job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It has its room and starts now.
    Now,
    /// It has a place in the queue: store it, then [`Scheduler::wait`].
    Later,
    /// The queue is full.
    Full,
}

impl Scheduler {
    /// An empty scheduler.
    #[must_use]
    pub fn new(capacity: Capacity, queue_max: usize) -> Self {
        Self {
            capacity,
            free: capacity,
            queue_max,
            waiting: BTreeMap::new(),
            places: HashMap::new(),
            running: HashMap::new(),
            promised: 0,
        }
    }

    /// Decides about a new job. It starts at once only if nobody waits: whoever waits was here
    /// before.
    pub fn admit(&mut self, id: JobId, demand: Demand) -> Admission {
        if self.waiting.is_empty() && self.promised == 0 && self.fits(demand) {
            self.take(id, demand);
            return Admission::Now;
        }
        if self.waiting.len() + self.promised >= self.queue_max {
            return Admission::Full;
        }
        self.promised += 1;
        Admission::Later
    }

    /// Gives back a place that [`Admission::Later`] had promised to a job that was not stored.
    pub const fn abandon(&mut self) {
        self.promised = self.promised.saturating_sub(1);
    }

    /// Takes the place that [`Admission::Later`] had promised.
    pub fn wait(&mut self, id: JobId, priority: i16, demand: Demand) {
        self.abandon();
        self.requeue(id, priority, demand);
    }

    /// Puts a job in the queue that was promised before this server lived, or that runs again:
    /// never refused. An earlier server may have had more to give: who wants more than there is in
    /// all starts when all is free, and does not hold up the queue for ever.
    pub fn requeue(&mut self, id: JobId, priority: i16, demand: Demand) {
        let demand = Demand {
            cpu_millis: demand.cpu_millis.min(self.capacity.cpu_millis),
            memory_bytes: demand.memory_bytes.min(self.capacity.memory_bytes),
        };
        let place = Place { priority: std::cmp::Reverse(priority), id };
        self.places.insert(id, place);
        self.waiting.insert(place, Waiting { demand, passed_over: 0 });
    }

    /// Takes a waiting job out. False if it does not wait.
    pub fn withdraw(&mut self, id: JobId) -> bool {
        match self.places.remove(&id) {
            Some(place) => self.waiting.remove(&place).is_some(),
            None => false,
        }
    }

    /// Gives back what a job took. A job that took nothing gives nothing back.
    pub fn release(&mut self, id: JobId) {
        if let Some(demand) = self.running.remove(&id) {
            self.free.cpu_millis += demand.cpu_millis;
            self.free.memory_bytes += demand.memory_bytes;
        }
    }

    /// The next job that starts, its room taken, or `None` if none fits now.
    pub fn start_next(&mut self) -> Option<JobId> {
        let place = self.next_place()?;
        for (_, passed) in self.waiting.range_mut(..place).take(MAX_LOOKED_AT) {
            passed.passed_over += 1;
        }
        let waiting = self.waiting.remove(&place)?;
        self.places.remove(&place.id);
        self.take(place.id, waiting.demand);
        Some(place.id)
    }

    /// How many jobs wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// How many jobs run.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.len()
    }

    fn next_place(&self) -> Option<Place> {
        for (place, waiting) in self.waiting.iter().take(MAX_LOOKED_AT) {
            if self.fits(waiting.demand) {
                return Some(*place);
            }
            if waiting.passed_over >= MAX_PASSED_OVER {
                return None;
            }
        }
        None
    }

    const fn fits(&self, demand: Demand) -> bool {
        demand.cpu_millis <= self.free.cpu_millis && demand.memory_bytes <= self.free.memory_bytes
    }

    fn take(&mut self, id: JobId, demand: Demand) {
        self.free.cpu_millis = self.free.cpu_millis.saturating_sub(demand.cpu_millis);
        self.free.memory_bytes = self.free.memory_bytes.saturating_sub(demand.memory_bytes);
        self.running.insert(id, demand);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: Capacity = Capacity { cpu_millis: 2000, memory_bytes: 1000 };
    const SMALL: Demand = Demand { cpu_millis: 500, memory_bytes: 100 };
    const WHOLE: Demand = Demand { cpu_millis: 2000, memory_bytes: 1000 };

    fn scheduler() -> Scheduler {
        Scheduler::new(CAPACITY, 3)
    }

    fn waiting(scheduler: &mut Scheduler, priority: i16, demand: Demand) -> JobId {
        let id = JobId::generate();
        scheduler.requeue(id, priority, demand);
        id
    }

    #[test]
    fn a_job_starts_at_once_where_there_is_room_and_nobody_waits() {
        let mut scheduler = scheduler();
        for _ in 0..4 {
            assert_eq!(scheduler.admit(JobId::generate(), SMALL), Admission::Now);
        }
        assert_eq!(scheduler.admit(JobId::generate(), SMALL), Admission::Later);
        assert_eq!(scheduler.running(), 4);
    }

    #[test]
    fn a_new_job_does_not_overtake_one_that_waits() {
        let mut scheduler = scheduler();
        waiting(&mut scheduler, 0, SMALL);
        assert_eq!(scheduler.admit(JobId::generate(), SMALL), Admission::Later);
    }

    #[test]
    fn a_job_of_a_larger_server_starts_when_all_is_free() {
        let mut scheduler = scheduler();
        let small = JobId::generate();
        assert_eq!(scheduler.admit(small, SMALL), Admission::Now);
        let larger = Demand { cpu_millis: 4000, memory_bytes: 5000 };
        let large = waiting(&mut scheduler, 0, larger);
        assert_eq!(scheduler.start_next(), None);
        scheduler.release(small);
        assert_eq!(scheduler.start_next(), Some(large));
        scheduler.release(large);
        assert_eq!(scheduler.admit(JobId::generate(), WHOLE), Admission::Now, "all is there again");
    }

    #[test]
    fn a_full_queue_refuses_and_counts_promises() {
        let mut scheduler = scheduler();
        assert_eq!(scheduler.admit(JobId::generate(), WHOLE), Admission::Now);
        for _ in 0..3 {
            assert_eq!(scheduler.admit(JobId::generate(), SMALL), Admission::Later);
        }
        assert_eq!(scheduler.admit(JobId::generate(), SMALL), Admission::Full);
        scheduler.abandon();
        assert_eq!(scheduler.admit(JobId::generate(), SMALL), Admission::Later);
    }

    #[test]
    fn priority_goes_before_age_and_age_before_the_rest() {
        let mut scheduler = scheduler();
        let old = waiting(&mut scheduler, 0, SMALL);
        let young = waiting(&mut scheduler, 0, SMALL);
        let urgent = waiting(&mut scheduler, 5, SMALL);
        let order: Vec<_> = std::iter::from_fn(|| scheduler.start_next()).collect();
        assert_eq!(order, [urgent, old, young]);
    }

    #[test]
    fn what_a_job_took_comes_back_once() {
        let mut scheduler = scheduler();
        let id = JobId::generate();
        assert_eq!(scheduler.admit(id, WHOLE), Admission::Now);
        let next = waiting(&mut scheduler, 0, WHOLE);
        assert_eq!(scheduler.start_next(), None);
        scheduler.release(id);
        scheduler.release(id);
        assert_eq!(scheduler.start_next(), Some(next));
        assert_eq!(scheduler.free, Capacity { cpu_millis: 0, memory_bytes: 0 });
    }

    #[test]
    fn small_jobs_pass_a_large_one_only_so_often() {
        let mut scheduler = scheduler();
        let busy = JobId::generate();
        assert_eq!(scheduler.admit(busy, SMALL), Admission::Now);
        let large = waiting(&mut scheduler, 0, WHOLE);
        for _ in 0..MAX_PASSED_OVER {
            let small = waiting(&mut scheduler, 0, SMALL);
            assert_eq!(scheduler.start_next(), Some(small));
            scheduler.release(small);
        }
        waiting(&mut scheduler, 0, SMALL);
        assert_eq!(scheduler.start_next(), None, "the large job holds the line");
        scheduler.release(busy);
        assert_eq!(scheduler.start_next(), Some(large));
    }

    #[test]
    fn a_withdrawn_job_never_starts() {
        let mut scheduler = scheduler();
        let id = waiting(&mut scheduler, 0, SMALL);
        assert!(scheduler.withdraw(id));
        assert!(!scheduler.withdraw(id));
        assert_eq!(scheduler.start_next(), None);
        assert_eq!(scheduler.waiting(), 0);
    }
}

//! Which CPU a vCPU is given, and which of a CPU's vCPUs runs next.

use alloc::vec::Vec;

/// Which vCPU: index of the VM, index in it.
pub type Place = (usize, usize);

/// The vCPUs of one CPU that are on, in the order of their turns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunQueue {
    turns: Vec<Place>,
}

impl RunQueue {
    /// A queue without vCPUs.
    #[must_use]
    pub const fn new() -> Self {
        Self { turns: Vec::new() }
    }

    /// Returns the number of its vCPUs, sleeping ones included.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.turns.len()
    }

    /// Says whether it has no vCPU.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Returns its vCPUs in the order of their turns.
    pub fn iter(&self) -> impl Iterator<Item = Place> + '_ {
        self.turns.iter().copied()
    }

    /// Returns how many of its vCPUs are of VM `vm`.
    #[must_use]
    pub fn of_vm(&self, vm: usize) -> usize {
        self.iter().filter(|place| place.0 == vm).count()
    }

    /// Adds a vCPU; its turn comes after all others.
    pub fn push(&mut self, place: Place) {
        self.turns.push(place);
    }

    /// Takes a vCPU out, if it is there.
    pub fn remove(&mut self, place: Place) {
        self.turns.retain(|other| *other != place);
    }

    /// Takes all vCPUs of VM `vm` out.
    pub fn remove_vm(&mut self, vm: usize) {
        self.turns.retain(|place| place.0 != vm);
    }

    /// Returns the first vCPU that is `ready`; it goes behind all others. One that is passed over keeps its turn, so a sleeper
    /// runs as soon as it wakes.
    pub fn next(&mut self, ready: impl FnMut(Place) -> bool) -> Option<Place> {
        let index = self.iter().position(ready)?;
        let place = self.turns.remove(index);
        self.turns.push(place);
        Some(place)
    }
}

/// Chooses the CPU of a vCPU of VM `vm` that is turned on: the one with the fewest vCPUs, of those one with the fewest of the
/// same VM, of those the first. None: there are no CPUs.
pub fn least_loaded<'a>(
    queues: impl IntoIterator<Item = &'a RunQueue>,
    vm: usize,
) -> Option<usize> {
    let load = |queue: &RunQueue| (queue.len(), queue.of_vm(vm));
    let queues = queues.into_iter().map(load).enumerate();
    queues.min_by_key(|(_, load)| *load).map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn queue(places: &[Place]) -> RunQueue {
        let mut queue = RunQueue::new();
        for &place in places {
            queue.push(place);
        }
        queue
    }

    #[test]
    fn all_that_are_ready_run_in_turn() {
        let mut queue = queue(&[(0, 0), (1, 0), (2, 0)]);
        let order: Vec<_> = (0..6).filter_map(|_| queue.next(|_| true)).collect();
        assert_eq!(order, [(0, 0), (1, 0), (2, 0), (0, 0), (1, 0), (2, 0)]);
    }

    #[test]
    fn a_sleeper_that_wakes_is_next_and_then_waits_for_the_others() {
        let mut queue = queue(&[(0, 0), (1, 0), (2, 0)]);
        let awake = |place| place != (0, 0);
        assert_eq!(queue.next(awake), Some((1, 0)));
        assert_eq!(queue.next(awake), Some((2, 0)));
        let order: Vec<_> = (0..4).filter_map(|_| queue.next(|_| true)).collect();
        assert_eq!(order, [(0, 0), (1, 0), (2, 0), (0, 0)]);
    }

    #[test]
    fn nobody_runs_where_nobody_is_ready() {
        assert_eq!(queue(&[]).next(|_| true), None);
        let mut queue = queue(&[(0, 0), (0, 1)]);
        let before = queue.clone();
        assert_eq!(queue.next(|_| false), None);
        assert_eq!(queue, before);
    }

    #[test]
    fn a_vm_that_goes_leaves_nothing_behind() {
        let mut queue = queue(&[(0, 0), (1, 0), (0, 1), (1, 1)]);
        queue.remove((1, 1));
        queue.remove_vm(0);
        assert_eq!(queue.iter().collect::<Vec<_>>(), [(1, 0)]);
    }

    #[test]
    fn vcpus_of_a_vm_are_spread_and_cpus_fill_evenly() {
        let mut queues = [queue(&[]), queue(&[]), queue(&[])];
        for place in [(0, 0), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1)] {
            let index = least_loaded(&queues, place.0).unwrap();
            queues[index].push(place);
        }
        assert_eq!(queues[0], queue(&[(0, 0), (1, 2), (2, 1)]));
        assert_eq!(queues[1], queue(&[(1, 0), (1, 3)]));
        assert_eq!(queues[2], queue(&[(1, 1), (2, 0)]));
        assert_eq!(least_loaded([], 0), None);
    }

    #[test]
    fn a_brother_elsewhere_decides_between_cpus_of_the_same_load() {
        let queues = [queue(&[(1, 0)]), queue(&[(0, 0)])];
        assert_eq!(least_loaded(&queues, 1), Some(1));
        assert_eq!(least_loaded(&queues, 0), Some(0));
    }

    proptest! {
        /// Whoever is always ready waits for each other vCPU once at most.
        #[test]
        fn nobody_starves(count in 1..9_usize, awake in prop::collection::vec(any::<u16>(), 1..100)) {
            let places: Vec<Place> = (0..count).map(|index| (index, 0)).collect();
            let mut queue = queue(&places);
            let mut waited = 0;
            for awake in awake {
                let ran = queue.next(|place| place.0 == 0 || awake >> place.0 & 1 != 0);
                waited = if ran == Some((0, 0)) { 0 } else { waited + 1 };
                prop_assert!(waited < count);
            }
        }
    }
}

//! Which CPU a vCPU is given, and which of a CPU's vCPUs runs next: the one that has had the least of it.

use alloc::vec::Vec;

/// Which vCPU: index of the VM, index in it.
pub type Place = (usize, usize);

/// A vCPU in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Turn {
    place: Place,
    /// Counts that it has run, as far as fairness is concerned: comparable within one queue only.
    time: u64,
}

/// The vCPUs of one CPU that are on, in the order in which they came to it.
///
/// Each that is ready all the time gets the same share, within a slice: whoever has run least is next. One that sleeps saves no
/// more than a credit of what it could have had meanwhile, so that it runs soon when it wakes and keeps nobody waiting for long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunQueue {
    turns: Vec<Turn>,
    /// The least time of those that were ready: never falls.
    floor: u64,
}

/// Who runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The vCPU.
    pub place: Place,
    /// The one that would be next: it is ready, and waits.
    pub waiting: Option<Place>,
}

impl RunQueue {
    /// A queue without vCPUs.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            turns: Vec::new(),
            floor: 0,
        }
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

    /// Returns its vCPUs.
    pub fn iter(&self) -> impl Iterator<Item = Place> + '_ {
        self.turns.iter().map(|turn| turn.place)
    }

    /// Returns how many of its vCPUs are of VM `vm`.
    #[must_use]
    pub fn of_vm(&self, vm: usize) -> usize {
        self.iter().filter(|place| place.0 == vm).count()
    }

    /// Adds a vCPU, `ahead` of the one that has run least by so many counts.
    pub fn push(&mut self, place: Place, ahead: u64) {
        let time = self.floor.saturating_add(ahead);
        self.turns.push(Turn { place, time });
    }

    /// Takes a vCPU out. Returns how far it was ahead of the one that had run least.
    pub fn remove(&mut self, place: Place) -> u64 {
        let Some(index) = self.iter().position(|other| other == place) else {
            return 0;
        };
        let turn = self.turns.remove(index);
        turn.time.saturating_sub(self.floor)
    }

    /// Takes all vCPUs of VM `vm` out.
    pub fn remove_vm(&mut self, vm: usize) {
        self.turns.retain(|turn| turn.place.0 != vm);
    }

    /// Notes that a vCPU has run for so many counts.
    pub fn charge(&mut self, place: Place, counts: u64) {
        if let Some(turn) = self.turns.iter_mut().find(|turn| turn.place == place) {
            turn.time = turn.time.saturating_add(counts);
        }
    }

    /// Chooses the vCPU that is `ready` and has run least; one that is `yielding` only if there is no other. Those that are not
    /// ready keep `credit` at most.
    pub fn next(
        &mut self,
        credit: u64,
        yielding: Option<Place>,
        mut ready: impl FnMut(Place) -> bool,
    ) -> Option<Choice> {
        let (mut first, mut second): (Option<Turn>, Option<Turn>) = (None, None);
        let mut least = u64::MAX;
        for turn in &mut self.turns {
            if !ready(turn.place) {
                turn.time = turn.time.max(self.floor.saturating_sub(credit));
                continue;
            }
            least = least.min(turn.time);
            let mut this = *turn;
            if yielding == Some(this.place) {
                this.time = u64::MAX;
            }
            let last = |other: &Turn| other.time <= this.time;
            if !first.as_ref().is_some_and(last) {
                (first, second) = (Some(this), first);
            } else if !second.as_ref().is_some_and(last) {
                second = Some(this);
            }
        }
        let place = first?.place;
        self.floor = self.floor.max(least);
        Some(Choice {
            place,
            waiting: second.map(|turn| turn.place),
        })
    }
}

/// Chooses the CPU of a vCPU of VM `vm` that is turned on: of those that are `allowed` (bit `n`: CPU `n`), the one with the fewest
/// vCPUs, of those one with the fewest of the same VM, of those the first. None: there is none.
pub fn least_loaded<'a>(
    queues: impl IntoIterator<Item = &'a RunQueue>,
    vm: usize,
    allowed: u64,
) -> Option<usize> {
    let load = |queue: &RunQueue| (queue.len(), queue.of_vm(vm));
    let queues = queues.into_iter().map(load).enumerate();
    queues
        .filter(|(index, _)| allowed >> index & 1 != 0)
        .min_by_key(|(_, load)| *load)
        .map(|(index, _)| index)
}

/// Chooses a vCPU that leaves CPU `this` for one where fewer are ready: the first that came, of those that are ready and that
/// another CPU is `allowed` to have (of a VM, bit `n`: CPU `n`). So each of more vCPUs than CPUs is alone on one in its turn.
/// None also if it is the `next` to run: it can leave when it has.
pub fn moves_on<'a>(
    queues: impl Iterator<Item = &'a RunQueue> + Clone,
    this: usize,
    next: Place,
    ready: impl Fn(Place) -> bool,
    allowed: impl Fn(usize) -> u64,
) -> Option<(Place, usize)> {
    let count = |queue: &RunQueue| queue.iter().filter(|place| ready(*place)).count();
    let mine = queues.clone().nth(this)?;
    let first = mine
        .iter()
        .find(|place| ready(*place) && allowed(place.0) & !(1 << this) != 0)
        .filter(|first| *first != next)?;
    // Of CPUs with the same load the next in a circle, so that each has its turn.
    let cpus = queues.clone().count();
    let others = queues
        .enumerate()
        .filter(|(index, _)| *index != this && allowed(first.0) >> index & 1 != 0);
    let loads = others.map(|(index, queue)| (count(queue), (index + cpus - this) % cpus, index));
    let (least, _, to) = loads.min()?;
    (least < count(mine)).then_some((first, to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SLICE: u64 = 100;

    fn queue(places: &[Place]) -> RunQueue {
        let mut queue = RunQueue::new();
        for &place in places {
            queue.push(place, 0);
        }
        queue
    }

    fn first(queue: &mut RunQueue, ready: impl FnMut(Place) -> bool) -> Option<Place> {
        queue.next(SLICE, None, ready).map(|choice| choice.place)
    }

    /// Whoever is next runs for `counts`.
    fn run(queue: &mut RunQueue, counts: u64, ready: impl FnMut(Place) -> bool) -> Option<Place> {
        let place = first(queue, ready)?;
        queue.charge(place, counts);
        Some(place)
    }

    #[test]
    fn all_that_are_ready_run_in_turn() {
        let mut queue = queue(&[(0, 0), (1, 0), (2, 0)]);
        let order: Vec<_> = (0..6)
            .filter_map(|_| run(&mut queue, SLICE, |_| true))
            .collect();
        assert_eq!(order, [(0, 0), (1, 0), (2, 0), (0, 0), (1, 0), (2, 0)]);
    }

    #[test]
    fn a_sleeper_that_wakes_is_next_but_has_saved_no_more_than_its_credit() {
        let mut queue = queue(&[(0, 0), (1, 0)]);
        for _ in 0..10 {
            assert_eq!(
                run(&mut queue, SLICE, |place| place != (0, 0)),
                Some((1, 0))
            );
        }
        let order: Vec<_> = (0..8)
            .filter_map(|_| run(&mut queue, SLICE / 2, |_| true))
            .map(|place| place.0)
            .collect();
        // The floor was that of the last choice but one when it was looked at last.
        assert_eq!(order, [0, 0, 0, 0, 0, 0, 0, 1], "a credit, and two slices");
    }

    #[test]
    fn one_that_gives_way_runs_again_when_another_has_run() {
        let mut queue = queue(&[(0, 0), (0, 1)]);
        let choice = queue.next(SLICE, Some((0, 0)), |_| true).unwrap();
        assert_eq!((choice.place, choice.waiting), ((0, 1), Some((0, 0))));
        queue.charge((0, 1), 1);
        assert_eq!(first(&mut queue, |_| true), Some((0, 0)));
        let alone = queue.next(SLICE, Some((0, 0)), |place| place == (0, 0));
        assert_eq!(alone.unwrap().place, (0, 0), "nobody else is ready");
    }

    #[test]
    fn who_waits_is_named() {
        let mut queue = queue(&[(0, 0), (0, 1), (0, 2)]);
        queue.charge((0, 1), 5);
        let choice = queue.next(SLICE, None, |_| true);
        assert_eq!(choice.unwrap().waiting, Some((0, 2)));
        let choice = queue.next(SLICE, None, |place| place == (0, 1));
        assert_eq!(choice.unwrap().waiting, None);
    }

    #[test]
    fn nobody_runs_where_nobody_is_ready() {
        assert_eq!(first(&mut queue(&[]), |_| true), None);
        let mut queue = queue(&[(0, 0), (0, 1)]);
        let before = queue.clone();
        assert_eq!(first(&mut queue, |_| false), None);
        assert_eq!(queue, before);
    }

    #[test]
    fn a_vcpu_that_moves_keeps_what_it_has_had_beyond_its_share() {
        let (mut one, mut other) = (queue(&[(0, 0), (0, 1)]), queue(&[(1, 0)]));
        one.charge((0, 0), 70);
        other.charge((1, 0), 1000);
        assert_eq!(first(&mut other, |_| true), Some((1, 0)));
        let ahead = one.remove((0, 0));
        other.push((0, 0), ahead);
        assert_eq!(run(&mut other, 71, |_| true), Some((1, 0)));
        assert_eq!(first(&mut other, |_| true), Some((0, 0)));
        assert_eq!(one.iter().collect::<Vec<_>>(), [(0, 1)]);
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
            let index = least_loaded(&queues, place.0, u64::MAX).unwrap();
            queues[index].push(place, 0);
        }
        assert_eq!(queues[0], queue(&[(0, 0), (1, 2), (2, 1)]));
        assert_eq!(queues[1], queue(&[(1, 0), (1, 3)]));
        assert_eq!(queues[2], queue(&[(1, 1), (2, 0)]));
        assert_eq!(least_loaded([], 0, u64::MAX), None);
    }

    #[test]
    fn a_brother_elsewhere_decides_between_cpus_of_the_same_load() {
        let queues = [queue(&[(1, 0)]), queue(&[(0, 0)])];
        assert_eq!(least_loaded(&queues, 1, u64::MAX), Some(1));
        assert_eq!(least_loaded(&queues, 0, u64::MAX), Some(0));
    }

    #[test]
    fn a_vcpu_gets_no_cpu_that_it_may_not_have() {
        let queues = [queue(&[]), queue(&[(1, 0)]), queue(&[(1, 1), (1, 2)])];
        assert_eq!(least_loaded(&queues, 0, 0b110), Some(1));
        assert_eq!(least_loaded(&queues, 0, 0b100), Some(2));
        assert_eq!(least_loaded(&queues, 0, 0b1000), None);
    }

    /// Each of `count` vCPUs that are always ready has what share of all CPUs, in percent, after two seconds of 2.5 ms.
    fn shares(count: usize, cpus: usize, allowed: impl Fn(usize) -> u64 + Copy) -> Vec<u64> {
        let mut queues = vec![RunQueue::new(); cpus];
        for vm in 0..count {
            let index = least_loaded(&queues, vm, allowed(vm)).unwrap();
            queues[index].push((vm, 0), 0);
        }
        let mut had = vec![0; count];
        for slice in 0..800 {
            for this in 0..cpus {
                let next = first(&mut queues[this], |_| true).unwrap();
                had[next.0] += 1;
                queues[this].charge(next, SLICE);
                if (slice + this) % 8 < 2
                    && let Some((place, to)) =
                        moves_on(queues.iter(), this, next, |_| true, allowed)
                {
                    let ahead = queues[this].remove(place);
                    queues[to].push(place, ahead);
                }
            }
        }
        had.iter().map(|had| had / 8).collect()
    }

    #[test]
    fn more_vcpus_than_cpus_have_equal_shares_of_all() {
        for (count, cpus) in [(3, 2), (5, 2), (4, 3), (7, 3), (9, 4), (4, 2), (8, 1)] {
            let fair = (100 * cpus / count) as u64;
            for share in shares(count, cpus, |_| u64::MAX) {
                assert!(
                    share.abs_diff(fair) <= 3,
                    "{share} of {fair}: {count} on {cpus}"
                );
            }
        }
    }

    #[test]
    fn a_vcpu_that_may_not_leave_stays() {
        // The first two may have one CPU each.
        let only = |vm| [0b01, 0b10, 0b11].get(vm).copied().unwrap_or_default();
        // The third shares with the one, then with the other.
        let [first, second, third] = shares(3, 2, only)[..] else {
            panic!("three");
        };
        assert!(
            first.min(second) >= 60 && first.max(second) <= 90,
            "{first} {second}"
        );
        assert!(third.abs_diff(50) <= 5, "{third}");
        assert_eq!(
            shares(3, 2, |vm| if vm < 2 { 0b01 } else { 0b10 }),
            [50, 50, 100]
        );
    }

    #[test]
    fn nobody_leaves_for_a_cpu_where_as_many_are_ready() {
        let queues = [queue(&[(0, 0), (1, 0)]), queue(&[(2, 0), (3, 0)])];
        let moves =
            |next, ready: fn(Place) -> bool| moves_on(queues.iter(), 0, next, ready, |_| u64::MAX);
        assert_eq!(moves((1, 0), |_| true), None);
        assert_eq!(moves((1, 0), |place| place != (3, 0)), Some(((0, 0), 1)));
        assert_eq!(moves((0, 0), |place| place != (3, 0)), None, "it runs next");
        assert_eq!(moves((1, 0), |place| place.0 == 1), None, "nobody waits");
    }

    /// One step of a CPU: who is awake, whether the one that ran gives way, and how long the next one runs.
    fn steps(most: usize) -> impl Strategy<Value = Vec<(u8, bool, u64)>> {
        prop::collection::vec((any::<u8>(), any::<bool>(), 1..=SLICE), 1..most)
    }

    proptest! {
        /// Two that are always ready have had the same, within a slice, whatever the others do; and a CPU never idles while
        /// somebody is ready.
        #[test]
        fn the_lag_is_bounded(count in 2..8_usize, steps in steps(400)) {
            let places: Vec<Place> = (0..count).map(|index| (index, 0)).collect();
            let mut queue = queue(&places);
            let mut had = [0; 8];
            for (awake, _, counts) in steps {
                let ready = |place: Place| place.0 < 2 || awake >> place.0 & 1 != 0;
                let ran = run(&mut queue, counts, ready).unwrap();
                prop_assert!(ready(ran));
                had[ran.0] += counts;
                prop_assert!(had[0].abs_diff(had[1]) <= SLICE, "{:?}", had);
            }
        }

        /// Nobody gets more than the one that is always ready, by more than a slice and a credit, however it sleeps and wakes; so
        /// who is always ready has its share.
        #[test]
        fn a_sleeper_takes_no_more_than_its_share(count in 2..8_usize, steps in steps(400)) {
            let places: Vec<Place> = (0..count).map(|index| (index, 0)).collect();
            let mut queue = queue(&places);
            let mut had = [0; 8];
            for (awake, _, counts) in steps {
                let ready = |place: Place| place.0 == 0 || awake >> place.0 & 1 != 0;
                had[run(&mut queue, counts, ready).unwrap().0] += counts;
                for other in &had {
                    prop_assert!(*other <= had[0] + 2 * SLICE, "{:?}", had);
                }
            }
        }

        /// Whoever is ready and does not give way waits for no more than two slices and a credit of each other vCPU.
        #[test]
        fn nobody_starves(count in 2..8_usize, steps in steps(400)) {
            let places: Vec<Place> = (0..count).map(|index| (index, 0)).collect();
            let mut queue = queue(&places);
            let (mut waited, mut last) = (0, None);
            for (awake, gives_way, counts) in steps {
                let ready = |place: Place| place.0 == 0 || awake >> place.0 & 1 != 0;
                let yielding = last.filter(|place: &Place| gives_way && place.0 != 0);
                let place = queue.next(SLICE, yielding, ready).unwrap().place;
                queue.charge(place, counts);
                waited = if place.0 == 0 { 0 } else { waited + counts };
                prop_assert!(waited <= 3 * SLICE * count as u64, "{waited}");
                last = Some(place);
            }
        }
    }
}

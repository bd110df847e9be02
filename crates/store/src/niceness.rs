//! What nobody waits for gives way on the processors as well: to readers' bytes, and to whatever else shares them with the daemon
//! (its control group, where that has weights, sched(7)).

use rustix::process::{getpriority_process, setpriority_process};
use rustix::thread::gettid;

use crate::origin::Priority;

/// What nice(2) calls work that comes last.
const LAST: i32 = 19;

/// How nice a thread is.
#[derive(Debug)]
pub(crate) struct Niceness {
    usual: i32,
    now: i32,
    /// Whether it may become less nice again; only root may. Who may not stays as he is.
    returns: bool,
}

impl Niceness {
    /// Returns that of this thread.
    pub(crate) fn of_this_thread() -> Self {
        let usual = getpriority_process(Some(gettid())).unwrap_or_default();
        let returns = set(usual - 1) && set(usual);
        Self { usual, now: usual, returns }
    }

    /// Has this thread be as nice as its work is urgent.
    pub(crate) fn suit(&mut self, priority: Priority) {
        let wanted = match priority {
            Priority::Demand | Priority::Profile => self.usual,
            Priority::Hint | Priority::Background => LAST,
        };
        if wanted != self.now && self.returns && set(wanted) {
            self.now = wanted;
        }
    }
}

fn set(nice: i32) -> bool {
    setpriority_process(Some(gettid()), nice).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_be_in_a_hurry_again_gives_way_and_who_may_not_does_not() {
        let now = || getpriority_process(Some(gettid())).unwrap();
        // On a thread of its own: the runner's go on.
        let look = move || {
            let mut niceness = Niceness::of_this_thread();
            let (usual, returns) = (now(), niceness.returns);
            let mut seen = Vec::new();
            for priority in [Priority::Background, Priority::Demand, Priority::Hint, Priority::Profile] {
                niceness.suit(priority);
                seen.push(now());
            }
            assert_eq!(seen, if returns { [LAST, usual, LAST, usual] } else { [usual; 4] });
            niceness.returns = false;
            niceness.suit(Priority::Background);
            assert_eq!(now(), usual);
        };
        std::thread::spawn(look).join().unwrap();
    }
}

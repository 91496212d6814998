//! How figures are printed: a line each, with name, value and unit.

use std::time::Duration;

/// What is printed of a series.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Print {
    /// Its median.
    #[default]
    Medians,
    /// Every sample, for a caller that puts several runs together.
    Samples,
}

impl Print {
    /// Prints a series of times; nothing where nothing was measured.
    pub(crate) fn times(self, name: &str, mut times: Vec<Duration>) {
        if self == Print::Medians {
            times.sort_unstable();
            times = times.get(times.len() / 2).copied().into_iter().collect();
        }
        for time in times {
            println!("{name} {:.3} ms", time.as_secs_f64() * 1e3);
        }
    }
}

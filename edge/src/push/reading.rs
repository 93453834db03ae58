//! How the readers of pushes are, for metrics and `/configz`.

use crate::metrics::Metrics;

/// How the reader of a hub is. What is not known is not 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reading {
    /// Nobody needs it.
    #[default]
    Idle,
    /// Clients wait for pushes, and none are read.
    Down,
    /// Attached. Messages that the broker has and the clients have not; `None` = it can't be told (`Transient`).
    Up(Option<u64>),
}

/// Writes how all readers are into the metrics.
pub fn report(readings: impl Iterator<Item = Reading>, metrics: &Metrics) {
    let (mut down, mut lag, mut known, mut wanted) = (0, 0, false, false);
    for reading in readings {
        wanted |= reading != Reading::Idle;
        match reading {
            Reading::Idle | Reading::Up(None) => {}
            Reading::Down => down += 1,
            Reading::Up(Some(messages)) => {
                known = true;
                lag = lag.max(messages);
            }
        }
    }
    metrics.readers_down.set(down);
    metrics.reader_lag.set(if known || !wanted { lag as f64 } else { f64::NAN });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lag_that_is_not_known_is_not_zero() {
        let metrics = Metrics::default();
        let read = |readings: &[Reading]| {
            report(readings.iter().copied(), &metrics);
            (metrics.readers_down.get(), metrics.reader_lag.get())
        };
        assert_eq!(read(&[]), (0, 0.0));
        assert_eq!(read(&[Reading::Idle]), (0, 0.0));
        assert_eq!(read(&[Reading::Up(Some(3)), Reading::Down, Reading::Up(None), Reading::Up(Some(5))]), (1, 5.0));
        for readings in [&[Reading::Down][..], &[Reading::Up(None), Reading::Idle]] {
            assert!(read(readings).1.is_nan(), "{readings:?}");
        }
        assert!(metrics.encode().contains("wirepost_edge_reader_lag NaN\n"));
    }
}

//! The state of the readers of pushes, for metrics and `/configz`.

use crate::metrics::Metrics;

/// The state of a hub's reader. An unknown lag is not 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reading {
    /// No client needs it.
    #[default]
    Idle,
    /// Clients wait for pushes, and none are read.
    Down,
    /// Attached, with the number of messages that it lags behind the broker; `None` = not known (`Transient`).
    Up(Option<u64>),
}

/// Sets the metrics of all readers.
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
    fn an_unknown_lag_is_not_zero() {
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

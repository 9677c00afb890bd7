//! What was measured, and how it is printed.

use std::fmt::{self, Display};
use std::time::Duration;

/// One quantity, measured several times.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn push(&mut self, took: Duration) {
        self.0.push(took.as_secs_f64());
    }

    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            count if count % 2 == 1 => sorted[count / 2],
            count => (sorted[count / 2 - 1] + sorted[count / 2]) / 2.0,
        }
    }

    /// The median of the rounds' own ratios: what disturbs a whole round disturbs both sides of it.
    pub fn ratio(&self, to: &Samples) -> f64 {
        Samples(self.0.iter().zip(&to.0).map(|(ours, theirs)| ours / theirs).collect()).median()
    }
}

/// The median, and in brackets what the rounds were between.
impl Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let least = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.0.iter().copied().fold(0.0, f64::max);
        let median = self.median();
        let (unit, factor) = if median < 1e-3 { ("us", 1e6) } else { ("ms", 1e3) };
        let show = |seconds: f64| match seconds * factor {
            small if small < 10.0 => format!("{small:.2}"),
            middle if middle < 100.0 => format!("{middle:.1}"),
            large => format!("{large:.0}"),
        };
        f.pad(&format!("{} {unit} ({}-{})", show(median), show(least), show(most)))
    }
}

/// Bytes in MiB.
pub fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Prints tables, and remembers whether a goal was missed.
#[derive(Debug, Default)]
pub struct Report {
    missed: usize,
}

impl Report {
    /// Begins a table.
    pub fn table(&self, title: &str, columns: &[&str]) {
        println!();
        self.row(title, columns);
    }

    pub fn row(&self, name: &str, cells: &[impl Display]) {
        let cells: String = cells.iter().map(|cell| format!("  {:<28}", cell.to_string())).collect();
        println!("{}", format!("{name:<34}{cells}").trim_end());
    }

    /// Holds what was reached, in whatever unit `shown` says it, against its goal.
    pub fn goal(&mut self, what: &str, shown: impl Display, reached: f64, at_most: f64, limit: impl Display) {
        let verdict = if reached <= at_most { "reached" } else { "MISSED" };
        self.missed += usize::from(reached > at_most);
        println!("  {verdict:<8} {what}: {shown}, at most {limit}");
    }

    pub fn missed(&self) -> usize {
        self.missed
    }
}

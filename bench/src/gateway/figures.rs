//! What was measured, what it comes to, and whether that is within the limits. Pure.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};

use crate::worker::figures::Spread;

/// A read's CPU time, beside the minimal proxy's.
pub const READ_MAX: f64 = 1.10;
/// A submit's.
pub const SUBMIT_MAX: f64 = 1.30;

/// One turn of one side.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Turn {
    /// CPU microseconds per request.
    pub cpu_us: f64,
    /// Requests per second.
    pub per_second: f64,
    /// How much of its core the side used, 0–1.
    pub busy: f64,
}

/// All turns of one side with one kind of request, one per round.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// The side.
    pub side: String,
    /// In the order of the rounds.
    pub turns: Vec<Turn>,
}

/// One kind of request.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// `read` or `submit`.
    pub kind: &'static str,
    /// The most that the second may cost of the first.
    pub max: f64,
    /// The minimal proxy, ours, and then the others.
    pub series: Vec<Series>,
}

impl Comparison {
    /// A side's cost beside the first's, round by round: what slows the machine for a while slows both of a round.
    pub fn ratio(&self, series: &Series) -> Spread {
        let first = self.series.first().map_or(&[][..], |first| &first.turns);
        Spread::of(series.turns.iter().zip(first).map(|(turn, first)| turn.cpu_us / first.cpu_us))
    }

    /// Our cost beside the minimal proxy's.
    pub fn found(&self) -> f64 {
        self.series.get(1).map_or(f64::NAN, |ours| self.ratio(ours).median)
    }

    /// Whether the limit holds.
    pub fn holds(&self) -> bool {
        self.found() <= self.max
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut table = Table::new();
        table.load_preset(UTF8_FULL_CONDENSED);
        table.set_header([
            self.kind,
            "CPU µs",
            "middle half",
            "÷ minimal",
            "middle half",
            "requests/s",
            "core used",
        ]);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for series in &self.series {
            let of = |of: fn(&Turn) -> f64| Spread::of(series.turns.iter().map(of));
            let (cpu, ratio) = (of(|turn| turn.cpu_us), self.ratio(series));
            table.add_row([
                series.side.clone(),
                format!("{:.1}", cpu.median),
                format!("{:.1} – {:.1}", cpu.quartiles[0], cpu.quartiles[1]),
                format!("{:.2}", ratio.median),
                format!("{:.2} – {:.2}", ratio.quartiles[0], ratio.quartiles[1]),
                format!("{:.0}", of(|turn| turn.per_second).median),
                format!("{:.0} %", 100.0 * of(|turn| turn.busy).median),
            ]);
        }
        let verdict = if self.holds() { "holds" } else { "DOES NOT HOLD" };
        format!(
            "{table}\na {} costs {:.3} × the minimal proxy's CPU; at most {:.2}: {verdict}",
            self.kind,
            self.found(),
            self.max
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_round_by_round_and_judged_by_their_median() {
        let series = |side: &str, cpu: [f64; 3]| Series {
            side: side.to_owned(),
            turns: cpu.map(|cpu_us| Turn { cpu_us, per_second: 1e6 / cpu_us, busy: 1.0 }).into(),
        };
        let comparison = |ours| Comparison {
            kind: "read",
            max: READ_MAX,
            series: vec![series("minimal", [10.0, 20.0, 10.0]), series("ours", ours)],
        };
        // The second round was slow for both.
        let good = comparison([10.9, 21.8, 12.0]);
        assert!(good.holds() && (good.found() - 1.09).abs() < 1e-9, "{}", good.text());
        assert!(good.text().contains("1.09 – 1.09") && good.text().contains("1.090 × the minimal"));
        let bad = comparison([11.2, 22.4, 10.0]);
        assert!(!bad.holds() && bad.text().contains("DOES NOT HOLD"), "{}", bad.text());
        let nothing = Comparison { series: Vec::new(), ..good };
        assert!(!nothing.holds(), "what was not measured does not hold");
    }
}

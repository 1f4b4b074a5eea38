//! The tables of a simulated day.

use std::fmt::Write as _;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};

use super::cluster::Queues;
use super::{Options, Row, Scenario};

/// All scenarios as text: a table each, and what ours is beside the best of the others.
pub fn render(scenarios: &[Scenario], options: &Options) -> String {
    let mut text = format!(
        "Seconds from post to finish. Medians of {} days of {} h (seeds from {}).\n",
        options.seeds, options.hours, options.first_seed
    );
    for (name, rows) in scenarios {
        let mut table = Table::new();
        table.load_preset(UTF8_FULL_CONDENSED);
        table.set_header(["policy", "queues", "p50", "p99", "egress per day", "in the fast pool"]);
        for row in rows {
            table.add_row([
                row.rule.as_str().to_owned(),
                queues(row).to_owned(),
                format!("{:.0} s", row.p50_s),
                format!("{:.0} s", row.p99_s),
                format!("{:.2} $", row.egress_usd),
                format!("{:.0} %", row.fast_share * 100.0),
            ]);
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let (sticky, central) = (against_sticky(rows), against_central(rows));
        let percent = |ratio: f64| (ratio - 1.0) * 100.0;
        writeln!(
            text,
            "\n{name}\n{table}\np99 beside the best peer without pool queues: {:+.1} %; beside the best central one: {:+.1} %",
            percent(sticky),
            percent(central)
        )
        .expect("writing to a String cannot fail");
    }
    text
}

fn queues(row: &Row) -> &'static str {
    match (row.rule.is_central(), row.queues) {
        (true, _) => "central",
        (false, Queues::Workers) => "at workers",
        (false, Queues::Pools) => "of pools",
    }
}

/// Our p99 over the best of the peers whose jobs stay where they were sent.
pub fn against_sticky(rows: &[Row]) -> f64 {
    over_best(rows, |row| !row.rule.is_central() && row.queues == Queues::Workers)
}

/// Our p99 over the best of those who see all and know all sizes.
pub fn against_central(rows: &[Row]) -> f64 {
    over_best(rows, |row| row.rule.is_central())
}

fn over_best(rows: &[Row], of: impl Fn(&Row) -> bool) -> f64 {
    let best = rows.iter().filter(|row| of(row)).map(|row| row.p99_s).min_by(f64::total_cmp);
    let ours = rows.iter().find(|row| row.rule == super::Rule::Millrace).map(|row| row.p99_s);
    ours.zip(best).map_or(f64::NAN, |(ours, best)| ours / best)
}

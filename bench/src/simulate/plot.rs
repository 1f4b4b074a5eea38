//! The plot of a simulated day: p99 of every policy, scenario by scenario.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::cluster::Queues;
use super::{Row, Scenario};

const WIDTH: u32 = 1100;
const BAR: i32 = 14;
const LEFT: i32 = 320;
const RIGHT: i32 = 90;

/// Draws horizontal bars, each scenario on a scale of its own.
///
/// # Errors
/// The file cannot be written.
pub fn draw(scenarios: &[Scenario], path: &Path) -> Result<()> {
    let broken = |error: &dyn std::fmt::Display| anyhow!("draw {}: {error}", path.display());
    let lines: usize = scenarios.iter().map(|(_, rows)| rows.len() + 3).sum();
    let height = lines as u32 * BAR as u32 + 20;
    let area = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    area.fill(&WHITE).map_err(|error| broken(&error))?;
    let text = |size: i32, anchor: HPos| {
        ("sans-serif", size).into_font().color(&BLACK).pos(Pos::new(anchor, VPos::Center))
    };
    let mut y = 20;
    for (name, rows) in scenarios {
        let title = format!("p99 time to finish, {name}");
        area.draw(&Text::new(title, (10, y), text(14, HPos::Left))).map_err(|error| broken(&error))?;
        y += BAR + 4;
        let worst = rows.iter().map(|row| row.p99_s).fold(1.0, f64::max);
        // Beyond five times the best a bar only says "off the scale".
        let best = rows.iter().map(|row| row.p99_s).fold(f64::INFINITY, f64::min);
        let scale = f64::from(WIDTH as i32 - LEFT - RIGHT) / worst.min(5.0 * best);
        for row in rows {
            let label = Text::new(label(row), (LEFT - 8, y + BAR / 2), text(11, HPos::Right));
            area.draw(&label).map_err(|error| broken(&error))?;
            let right = LEFT + (row.p99_s.min(5.0 * best) * scale) as i32;
            let bar = Rectangle::new([(LEFT, y + 1), (right, y + BAR - 2)], color(row).filled());
            area.draw(&bar).map_err(|error| broken(&error))?;
            let value = format!("{:.0} s", row.p99_s);
            let value = Text::new(value, (right + 5, y + BAR / 2), text(11, HPos::Left));
            area.draw(&value).map_err(|error| broken(&error))?;
            y += BAR;
        }
        y += BAR;
    }
    area.present().map_err(|error| broken(&error))
}

fn label(row: &Row) -> String {
    let queues = match (row.rule.is_central(), row.queues) {
        (true, _) => "",
        (false, Queues::Workers) => ", queues at workers",
        (false, Queues::Pools) => ", queues of pools",
    };
    format!("{}{queues}", row.rule.as_str())
}

fn color(row: &Row) -> RGBColor {
    match (row.rule, row.queues) {
        (super::Rule::Millrace, _) => RGBColor(0x0b, 0x6e, 0x4f),
        (rule, _) if rule.is_central() => RGBColor(0x55, 0x55, 0x55),
        (_, Queues::Workers) => RGBColor(0xc0, 0x50, 0x30),
        (_, Queues::Pools) => RGBColor(0xd9, 0xa4, 0x41),
    }
}

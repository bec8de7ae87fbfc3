//! `sensor_tag` is attached in the modes that may tag, and in no other: a program that has nothing to do costs each received
//! packet its call (docs/performance.md).

use crate::agent::poll::Poller;
use crate::config::Mode;

impl Poller {
    /// Attaches `sensor_tag` or takes it off, as the mode asks. Called when the mode changes, and once a second for interfaces
    /// that came back and for what failed.
    pub(in crate::agent) fn follow_tagging(&mut self) {
        let on = self.enforcer.mode != Mode::Observe;
        let mut failure = None;
        for attached in &mut self.attached {
            if let Err(error) = self.kernel.set_tagging(attached, on) {
                failure = Some(error);
            }
        }
        match &failure {
            // Once, until it works.
            Some(_) if self.enforcer.tagging_failed => {}
            Some(error) if on => tracing::error!("packets are not tagged: {error:#}; it is tried again each second"),
            Some(error) => tracing::warn!("sensor_tag stays attached, without effect: {error:#}"),
            None => {}
        }
        self.enforcer.tagging_failed = failure.is_some();
    }

    /// Attaches `sensor_tag` for a mode that is about to be set.
    ///
    /// # Errors
    /// If an interface does not take it; then the mode is not to be set.
    pub(in crate::agent) fn prepare_tagging(&mut self, mode: Mode) -> anyhow::Result<()> {
        if mode == Mode::Observe {
            return Ok(());
        }
        self.attached.iter_mut().try_for_each(|attached| self.kernel.set_tagging(attached, true))
    }
}

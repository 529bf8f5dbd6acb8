/* Stopping on SIGTERM, SIGINT and SIGUSR1: the first asks, the second exits at once. Signals are the process's: its ranks
 * catch and restore as often as they like, the first and the last count. SIGBUS meanwhile (a mapped file was cut short) says so
 * and ends the process with status 1. */
#ifndef MOE_RUNTIME_TRAIN_SIGNAL_H
#define MOE_RUNTIME_TRAIN_SIGNAL_H

void moe_signals_catch(void);   /* from now on; forgets an earlier request */
void moe_signals_restore(void); /* the handlers as they were */
int moe_signals_received(void); /* the signal that asked to stop, or 0 */

#endif

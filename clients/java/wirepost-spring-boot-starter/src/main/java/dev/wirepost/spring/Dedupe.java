package dev.wirepost.spring;

/**
 * Recognises repeats: a message may come twice, with the same sender and id. A bean of this type replaces {@link
 * MemoryDedupe}. Best it is a table that is written in the transaction of the work:
 *
 * <pre>{@code
 * @Bean
 * Dedupe dedupe(JdbcTemplate jdbc, TransactionOperations transactions) {
 *     return (sender, id, work) -> transactions.execute(status -> {
 *         if (jdbc.update("INSERT INTO handled VALUES (?, ?) ON CONFLICT DO NOTHING", sender, id) == 0) {
 *             return false;
 *         }
 *         work.run();
 *         return true;
 *     });
 * }
 * }</pre>
 *
 * <p>It is asked for every queue of the application: where a message goes to two queues with different listeners, keep
 * them in two applications, or let the work recognise repeats itself.
 */
@FunctionalInterface
public interface Dedupe {
    /**
     * Runs the work unless it was done before. It is never called twice at the same time for one message in one process.
     *
     * @param sender the identity that sent it; empty if it has none
     * @return whether the work was run
     * @throws Exception what the work throws, or the store: the message then comes again
     */
    boolean once(String sender, String messageId, Runnable work) throws Exception;

    /** Every delivery is handled: for listeners that can do their work twice, or recognise repeats themselves. */
    static Dedupe none() {
        return (sender, messageId, work) -> {
            work.run();
            return true;
        };
    }
}
